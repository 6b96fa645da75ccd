"""TEMPORARY stand-in so that other parts can run: the author of answers.py overwrites this file."""
import re
def extract(text, kind):
    if kind == "list":
        m = re.findall(r"(?:####|[Aa]nswer is|answer:)\s*(.+)", text)
        return " ".join(m[-1].replace(",", " ").rstrip(".").split()).lower() if m else None
    m = re.findall(r"(?:####|[Aa]nswer is|answer:)\s*(-?\d+)", text)
    return m[-1] if m else None
def same(a, b, kind):
    return a == b
