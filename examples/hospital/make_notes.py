"""Writes the notes of two made-up hospitals, and those that the server evaluates on, as CSV files.

``python make_notes.py FOLDER`` makes FOLDER/north, FOLDER/south and FOLDER/held-out. No patient
exists: each note is put together from phrases. The hospitals differ, as real ones do: north sees
more emergencies, and each writes in its own way.
"""

import csv
import random
import sys
from pathlib import Path

COMPLAINTS = {
    "ward": (
        "chest pain radiating to the left arm",
        "severe shortness of breath at rest",
        "high fever with new confusion",
        "fall, hip fracture on the X-ray",
        "persistent vomiting, unable to drink",
        "oxygen saturation 86 % on room air",
    ),
    "home": (
        "mild cough for three days",
        "itching after an insect bite",
        "small cut on the finger, cleaned",
        "repeat prescription for asthma spray",
        "sore throat without fever",
        "lower back pain after gardening",
    ),
}
REMARKS = (
    "seen with daughter", "no known allergies", "takes ramipril 5 mg", "type 2 diabetes",
    "third visit this year", "ECG done", "blood tests sent", "non-smoker",
)  # fmt: skip
STYLES = {
    "north": "{age}-year-old {sex}: {complaint}. {remark}.",
    "south": "{complaint} ({sex}, {age}); {remark}",
}
WARD_SHARE = {"north": 0.6, "south": 0.35}
SIZES = {"north": 160, "south": 96}
HELD_OUT = 64  # notes of each hospital's kind that nobody trains on


def make_note(hospital: str, draw: random.Random) -> tuple[str, str]:
    """One note of a hospital, and what became of the patient: ward or home."""
    outcome = "ward" if draw.random() < WARD_SHARE[hospital] else "home"
    note = STYLES[hospital].format(
        age=draw.randint(18, 94) if outcome == "home" else draw.randint(40, 96),
        sex=draw.choice(("woman", "man")),
        complaint=draw.choice(COMPLAINTS[outcome]),
        remark=draw.choice(REMARKS),
    )
    return note, outcome


def write(file: Path, rows: list[tuple[str, str, str]]) -> None:
    """Write a table of hospital, note and outcome."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("hospital", "note", "outcome"), *rows])


def main(folder: Path) -> None:
    """Write the three tables; the same ones on every call."""
    held_out = []
    for seed, (hospital, size) in enumerate(SIZES.items(), 1):
        draw = random.Random(seed)
        rows = [(hospital, *make_note(hospital, draw)) for _ in range(size + HELD_OUT)]
        write(folder / hospital / "notes.csv", rows[:size])
        held_out += rows[size:]
    write(folder / "held-out" / "notes.csv", held_out)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "notes"))
