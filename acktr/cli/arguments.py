"""Reading of what was typed: numbers, and one sentence about what could not be understood."""

import re

from acktr.run.units import whole_number


def given_number(option: str, text: str | None) -> int | None:
    """Read an option's whole number; ``None`` where it was left out.

    :raises ConfigurationError: it is none
    """
    return None if text is None else whole_number(option, text)


def as_sentence(box: str, program: str) -> str:
    """Turn the box in which tyro says what it does not understand into a sentence.

    :param box: as printed
    :param program: whose ``--help`` is named
    """
    parts: list[list[str]] = [[]]
    for line in box.splitlines()[1:]:  # below the title
        text = line.strip(" │|")
        if re.fullmatch("[-─╰╯+]+", text):  # a rule
            parts.append([])
        elif text:
            parts[-1].append(text)
    problem, *hints = [part for part in parts if part] or [["The command line is not understood"]]
    if problem[0].startswith("Missing from"):
        del problem[2:]  # what the argument means
    sentence = " ".join(" ".join(problem).split()).rstrip(". ")
    for first, *rest in hints:
        if first.startswith("Perhaps you meant") and rest:
            sentence += f" (did you mean {rest[0].split()[0]}?)"
        elif first.startswith("Available subcommands"):
            sentence += f" ({' '.join([first, *rest]).removeprefix('Available subcommands: ')})"
    return f"{sentence}: see {program} --help."
