"""Penn-Treebank-style tokens as caption papers have them, without Java.

COCO's evaluation tokenizes with Stanford's PTBTokenizer (CoreNLP 3.4.1, lower case) and then drops
punctuation. This is our own lexer with that one's observable rules for English prose, numbers, units and
coordinates; `tests/parity/ptb_cases.json` holds what Stanford's tool answers. It differs in rare corners
(smileys, phone numbers, exotic scripts).
"""

from __future__ import annotations

import regex

# Dropped after tokenizing, as COCO does. Brackets come out as -lrb- and stay: COCO drops only the
# capital form, which the lower-casing has just removed.
_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Abbreviations that keep their period; "ill." or "mass." do only with a capital.
_ANY_CASE = (
    r"adj|adm|adv|al|ala|alex|apr|ariz|assn|assoc|atty|aug|ave|bancorp|bhd|bldg|blvd|brig|bros|calif|"
    r"capt|cf|cie|cmdr|co|col|colo|comdr|conn|corp|cos|cpl|ct|dak|dec|dept|det|dr|drs|elec|ens|esq|est|"
    r"etc|ext|feb|fla|fri|ft|ga|gen|gov|hon|inc|ind|insp|intl|invt|jan|jr|jul|jun|kan|kans|ky|lieut|lt|"
    r"ltd|maj|mar|md|messrs|mfg|mich|minn|mo|mon|mont|mr|mrs|ms|mt|natl|neb|nev|nov|oct|okla|penn|pfc|"
    r"ph|plc|pres|prof|pte|pty|pvt|rd|rep|reps|rev|rt|sen|sep|sept|seq|sgt|spc|sq|sr|st|ste|supt|sys|"
    r"tel|tenn|thu|thurs|tue|tues|univ|va|vs|vt|wed|wis|wisc|wm|wyo"
)
_CAPITALIZED = r"ark|del|det|ill|la|mass|miss|ore|pa|tex|wash"
# A single letter does not before these: "at point B. The car".
_SENTENCE_STARTS = (
    r"A|About|According|After|An|As|At|But|Earlier|He|Here|However|If|In|It|Last|Many|More|Now|Once|One|"
    r"Other|Our|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|While|You|"
    r"Mr\.|Ms\."
)
_BEFORE_NUMBER = r"art|ca|fig|figs|no|nos|op|pp|prop"

_A = r"[\p{L}\p{M}\p{Nd}]"
_L = r"[\p{L}\p{M}]"
_NOT_A = rf"(?!{_A})"
# A word lets "n't" go: "do|n't", "ca|n't".
_WORD = rf"{_A}+(?!(?<=[nN])'[tT]{_NOT_A})"
_PART = rf"{_A}+(?:[-‐‑]{_A}+)*"

_TOKEN = regex.compile(
    "|".join(
        [
            r"</?[A-Za-z][\w.:-]*(?:\s[^<>]*)?/?>|<!--.*?-->|<\?[^<>]*>",  # tags
            r"(?:https?://|www\.)[^\s<>\"'()\[\]{}|]*[^\s<>\"'()\[\]{}|.,!?;:]",
            rf"{_A}[\w.-]*@{_A}+(?:\.{_A}+)*|@[\p{{L}}_]\w*|\#{_L}+",  # mail, names, hash tags
            r">?[:;=][-o']?[()\[\]DPpO@|](?!\w)|\(\d{2,3}\)[ -]?\d{3,4}-\d{4}",  # smileys, phone numbers
            r"[cC]\+\+|[cCfF]\#|[A-Z]+(?:&[A-Z]+)+|[A-Z]+\$",
            rf"{_WORD}(?:_{_A}+)*|{_A}+[!?]{_A}+",
            rf"{_L}{_A}*(?:\.{_L}{_A}*)+",  # end.Next
            # A number or word of any kind, with hyphens: 3.5m-wide, 5-10m, U.S.-based, and 12.4,-3.
            rf"{_A}+(?:[.,]{_A}+)*[.,]?(?:[-‐‑](?:{_A}+|(?:{_L}\.){{2,}}))+",
            rf"{_PART}(?:/{_PART}){{1,2}}",  # km/h, 24/7, left-hand/right-hand
            r"[+-]?(?:\d|[.,:]\d)\d*(?:[.,:]\d+)*",
            rf"(?:{_L}\.){{2,}}|{_L}(?:\.{_L})+{_NOT_A}",  # U.S. a.m
            rf"{_L}\.(?!\s+(?:{_SENTENCE_STARTS})(?:\s|$))",
            rf"(?i:{_ANY_CASE})\.|(?=\p{{Lu}})(?i:{_CAPITALIZED})\.",
            rf"(?i:{_BEFORE_NUMBER})\.(?=\s*\d)|{_A}*{_L}{_A}*\.(?=[,;:])",
            rf"[nN]'[tT]{_NOT_A}|'(?i:[smd]|re|ve|ll|em|cause|n){_NOT_A}|'n'|'\d\ds?(?!{_A}|\")|(?<!{_A})'[tT](?=\s)",
            rf"(?i:[dlo]|qu)'{_L}{{2,}}|(?i:ne'er|e'er|ma'am|c'mon|ol')|[yY]'(?={_L})",
            r"[?!]{2,}|\*+|_+|\#{2,}|\.\.\.|''|-+|\S",
        ]
    ),
    regex.POSIX,  # the longest alternative wins
)
_SPLIT = regex.compile(
    rf"(?<!{_A}/?)(?i:('t)(is|was)|(can)(not)|(?:(gon|wan)(na)|(got)(ta)|(lem|gim)(me)|(more)('n))(?!')){_NOT_A}(?!/{_A})"
)
_SPELLED = str.maketrans(
    {
        "’": "'", "‘": "`", "‛": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"',
        "–": " -- ", "—": " -- ", "―": " -- ", "‒": " - ", "…": " ... ",
        "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "€": " $ ", "£": " # ", "¢": " cents ",
    }
)  # fmt: skip
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"'}
_BRACKETS = {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def ptb_tokens(text: str) -> list[str]:
    """Lower-case tokens of a sentence, punctuation dropped."""
    for entity, character in _ENTITIES.items():
        text = text.replace(entity, character)
    text = _SPLIT.sub(lambda m: " ".join(g for g in m.groups() if g), text.translate(_SPELLED))
    return [t for match in _TOKEN.finditer(text) if (t := _spell(match.group())) not in _DROPPED and t]


def _spell(token: str) -> str:
    if token == '"' or token in ("---", "----"):
        return ""
    if len(token) == 1 and (ord(token) > 0xFFFF or token in "‐‑"):
        return ""  # a picture or a lone hyphen: Stanford's tool leaves it out
    if token[0] == "<" and len(token) > 1:
        return token.lower().replace(" ", "\N{NO-BREAK SPACE}")
    token = token.replace("(", "-lrb-").replace(")", "-rrb-")
    return _BRACKETS.get(token, token.lower())
