"""K-FAC outside of reinforcement learning: its speed beside other optimisers, and its trust region."""
