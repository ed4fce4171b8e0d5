"""Colours, and how a chart's elements look: told once, for the page's style sheet and for figures that stand alone.

The eight colours of lines can be told apart on light and dark ground and without red-green vision (after Okabe and
Ito), and half of them are dashed besides. A ramp from blue over teal to amber is for more.
"""

from collections.abc import Mapping, Sequence

Palette = Mapping[str, str]
LIGHT: Palette = {
    "ground": "#f5f6f8", "card": "#ffffff", "ink": "#171c24", "soft": "#566170", "edge": "#dde2e8", "inset": "#f2f4f7",
    "accent": "#0b4f99", "heat": "#07305f", "on-heat": "#ffffff", "on-cell": "#171c24", "bar": "#5b9bd5",
    "worst": "#0b3f7d", "warn": "#9a4a00", "good": "#00694b", "bad": "#b3261e",
    "c0": "#0072b2", "c1": "#c44e00", "c2": "#00805c", "c3": "#a63d84", "c4": "#8a6d00", "c5": "#3793c8",
    "c6": "#7149c6", "c7": "#5b6570",
}  # fmt: skip
DARK: Palette = {
    "ground": "#0e1217", "card": "#161c23", "ink": "#e7ebf0", "soft": "#9ba7b4", "edge": "#29323c", "inset": "#10151b",
    "accent": "#7cb9ff", "heat": "#7cb9ff", "on-heat": "#08111c", "on-cell": "#ffffff", "bar": "#4a7fb5",
    "worst": "#b9dbff", "warn": "#ffb866", "good": "#4fd6a8", "bad": "#ff8a80",
    "c0": "#56b4e9", "c1": "#ff9248", "c2": "#2fcb9b", "c3": "#e58fc2", "c4": "#e3c545", "c5": "#8fa6ff",
    "c6": "#bd9dff", "c7": "#a9b4c0",
}  # fmt: skip
NAMED = 8  # as many lines have a colour, a dash and a name of their own
DASHED = range(4, NAMED)
RAMP = ((59, 111, 212), (42, 161, 152), (217, 147, 43))
SIZE, FONTS = 13.0, 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif'

Rules = Mapping[str, Mapping[str, str]]


def _rules() -> Rules:
    """Return what each class of a drawn element looks like; @NAME is a colour of the palette, the last word counts."""
    rules: dict[str, dict[str, str]] = {
        "text": {"fill": "@ink"},
        "axis": {"fill": "@soft"},
        "grid": {"stroke": "@edge"},
        "mark": {"fill": "none", "stroke": "@soft", "stroke-dasharray": "1 3", "stroke-opacity": "0.9"},
        "mark-name": {"fill": "@soft", "font-size": "11.5px"},
        "line": {"fill": "none", "stroke-width": "2", "stroke-linejoin": "round", "stroke-linecap": "round"},
        "rest": {"stroke": "@soft", "stroke-width": "1", "stroke-opacity": "0.45"},
        "band": {"fill-opacity": "0.16"},
        "name": {"font-weight": "650"},
        "cell": {"fill": "@heat"},
        "level": {"stroke": "@heat"},
        "cell unknown": {"fill": "none", "stroke": "@edge", "stroke-dasharray": "2 3"},
        "cell just": {"stroke": "@ink", "stroke-width": "1.6"},
        "value": {"font-size": "13px", "font-weight": "550", "fill": "@on-cell"},
        "value high": {"fill": "@on-heat"},
        "bar": {"fill": "@bar"},
        "area": {"fill": "@bar"},
        "worst": {"fill": "@worst"},
        "mean": {"stroke": "@ink", "stroke-width": "1.4", "stroke-dasharray": "5 4"},
        "inside": {"fill": "@card", "font-size": "11.5px", "font-weight": "650"},
        "seed": {"fill": "none", "stroke-width": "1.3"},
        "whisker": {"stroke-width": "2"},
        "all": {"stroke": "@soft"},
    }
    for i in range(NAMED):
        rules[f"line c{i}"] = {"stroke": f"@c{i}"} | ({"stroke-dasharray": "7 4"} if i in DASHED else {})
        rules |= {f"{each} c{i}": {"stroke": f"@c{i}"} for each in ("visits", "seed", "whisker")}
        rules |= {f"{each} c{i}": {"fill": f"@c{i}"} for each in ("name", "band", "dot")}
    return rules


RULES = _rules()


def ramp(part: float) -> str:
    """Return the colour at `part` in [0, 1] of the ramp."""
    place = part * (len(RAMP) - 1)
    i = min(int(place), len(RAMP) - 2)
    mixed = (round(a + (b - a) * (place - i)) for a, b in zip(RAMP[i], RAMP[i + 1], strict=True))
    return f"#{bytes(mixed).hex()}"


def _variables(palette: Palette) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in palette.items())


def sheet() -> str:
    """Return the palettes and the charts' rules as CSS: dark where the system is or the reader says so, print light."""
    dark = _variables(DARK)
    lines = [
        f":root {{ color-scheme: light dark; {_variables(LIGHT)} }}",
        ":root[data-theme=light] { color-scheme: light; }",
        f"@media screen and (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {dark} }} }}",
        f"@media screen {{ :root[data-theme=dark] {{ color-scheme: dark; {dark} }} }}",
        f"svg {{ font: {SIZE:g}px/1 {FONTS}; }}",
    ]
    for classes, looks in RULES.items():
        selector = "text" if classes == "text" else "." + classes.replace(" ", ".")
        words = " ".join(f"{k}: {f'var(--{v[1:]})' if v.startswith('@') else v};" for k, v in looks.items())
        lines.append(f"svg {selector} {{ {words} }}")
    lines += [f".key.c{i} {{ background: var(--c{i}); }}" for i in range(NAMED)]
    return "\n".join(lines)


def resolved(tag: str, classes: Sequence[str], palette: Palette = LIGHT) -> dict[str, str]:
    """Return how an element looks as attributes, for a drawing without a style sheet."""
    known = {tag, *classes} if tag == "text" else set(classes)
    looks: dict[str, str] = {}
    for each, rule in RULES.items():
        if set(each.split()) <= known:
            looks |= {k: palette[v[1:]] if v.startswith("@") else v for k, v in rule.items()}
    return looks
