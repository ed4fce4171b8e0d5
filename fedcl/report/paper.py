"""Figures for papers: the page's drawings with their looks resolved, white ground, as SVG and PDF that stand alone."""

import copy
import io
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from fedcl.report import style
from fedcl.report.figures import Figure
from fedcl.report.svg import Drawing, node

SVG, XML = "http://www.w3.org/2000/svg", "<?xml version='1.0' encoding='utf-8'?>\n"
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
FONTS = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
EMBEDDED = "Vera"  # comes with reportlab, and goes along in every PDF
BOLD = 600  # the weight from which on a font is bold
CENTIMETRES = 8.6  # a column of a paper


def standing_alone(drawing: Drawing, fonts: str = FONTS) -> Drawing:
    """Return a drawing that needs no style sheet: white ground, every colour, size and weight at its element."""
    root = copy.deepcopy(drawing)
    _, _, width, height = root.attrib["viewBox"].split()
    for each in root.iter():
        for title in each.findall("title"):  # what a pointer shows on a page; in a PDF it would be printed
            each.remove(title)
        looks = style.resolved(each.tag, each.attrib.pop("class", "").split())
        each.attrib |= {name: value for name, value in looks.items() if name not in each.attrib}
        if each.tag == "text":
            size = each.attrib.get("font-size", str(style.SIZE)).removesuffix("px")
            bold = int(each.attrib.get("font-weight", "400")) >= BOLD
            each.attrib |= {"font-family": fonts, "font-size": size, "font-weight": "bold" if bold else "normal"}
    label, tall = root.attrib.pop("aria-label"), CENTIMETRES * float(height) / float(width)
    root.attrib |= {"xmlns": SVG, "width": f"{CENTIMETRES}cm", "height": f"{tall:.3f}cm"}
    root.insert(0, ET.Element("rect", {"width": width, "height": height, "fill": "#ffffff"}))
    title = node(root, "title", label)
    root.remove(title)
    root.insert(0, title)
    return root


def as_svg(drawing: Drawing, fonts: str = FONTS) -> bytes:
    """Return a drawing as an SVG file; what no XML may hold of the runs' texts is left out."""
    source = ET.tostring(standing_alone(drawing, fonts), encoding="unicode")
    return (XML + CONTROL.sub("", source) + "\n").encode("utf-8", errors="replace")


def writes_pdf() -> bool:
    """Return whether what writes PDF is installed; SVG needs nothing."""
    try:
        import svglib.svglib  # noqa: F401
    except ImportError:
        return False
    return True


def as_pdf(drawing: Drawing) -> bytes:
    """Return a drawing as a PDF file of one page, its fonts embedded."""
    import reportlab
    from reportlab.graphics import renderPDF
    from svglib.fonts import register_font
    from svglib.svglib import svg2rlg

    fonts = Path(reportlab.__file__).parent / "fonts"
    register_font(EMBEDDED, str(fonts / "Vera.ttf"))
    register_font(EMBEDDED, str(fonts / "VeraBd.ttf"), weight="bold", rlgFontName="Vera-Bold")
    return bytes(renderPDF.drawToString(svg2rlg(io.BytesIO(as_svg(drawing, EMBEDDED))), autoSize=1))


def write(figures: Sequence[tuple[str, Figure]], folder: Path) -> list[Path]:
    """Write figures, those that could be drawn, as NAME.svg, and as NAME.pdf where svglib is; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files, pdf = [], writes_pdf()
    for name, figure in figures:
        if figure.drawing is not None:
            for ending, write in (("svg", as_svg), ("pdf", as_pdf))[: 1 + pdf]:
                files.append(folder / f"{name}.{ending}")
                files[-1].write_bytes(write(figure.drawing))
    return files
