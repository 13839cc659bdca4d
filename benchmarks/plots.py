"""Small plots as SVG text, without a library that draws."""

from collections.abc import Mapping
from html import escape

WIDTH, HEIGHT, MARGIN = 260, 200, 44


def curves(panels: Mapping[str, Mapping[int, float]], unit: str) -> str:
    """One panel per name, side by side, each with a line through its points and one through zero for linear growth.

    Args:
        panels: Values over sizes, by what the sizes count.
        unit: What the values are.
    """
    drawn = [_panel(name, points, unit, WIDTH * place) for place, (name, points) in enumerate(panels.items())]
    width = WIDTH * len(panels)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}" font-family="sans-serif"'
    return "\n".join([f'{head} font-size="11"><rect width="100%" height="100%" fill="white"/>', *drawn, "</svg>", ""])


def _panel(name: str, points: Mapping[int, float], unit: str, left: int) -> str:
    last, top = max(points), max(points.values())

    def place(size: float, value: float) -> str:
        across = left + MARGIN + (WIDTH - MARGIN - 12) * size / last
        return f"{across:.1f},{HEIGHT - MARGIN - (HEIGHT - MARGIN - 20) * value / top:.1f}"

    line = " ".join(place(size, value) for size, value in points.items())
    marks = []
    for size, value in points.items():
        x, y = place(size, value).split(",")
        marks.append(f'<circle cx="{x}" cy="{y}" r="3" fill="#1f6feb"/>')
        marks.append(f'<text x="{x}" y="{HEIGHT - MARGIN + 14}" text-anchor="middle">{size}</text>')
        marks.append(f'<text x="{x}" y="{float(y) - 6:.1f}" text-anchor="end">{value:.0f}</text>')
    parts = [
        f'<polyline points="{place(0, 0)} {place(last, top)}" fill="none" stroke="#bbb" stroke-dasharray="4 3"/>',
        f'<polyline points="{line}" fill="none" stroke="#1f6feb"/>',
        f'<polyline points="{place(0, top)} {place(0, 0)} {place(last, 0)}" fill="none" stroke="black"/>',
        *marks,
        f'<text x="{left + WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(name)}</text>',
        f'<text x="{left + 6}" y="12">{escape(unit)}</text>',
    ]
    return "\n".join(parts)
