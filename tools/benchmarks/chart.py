"""A bar chart as SVG, without any library: rows of labelled bars on a logarithmic scale."""
import math
from xml.sax.saxutils import escape

LABEL, WIDTH, ROW, TOP = 280, 420, 20, 50
COLORS = ("#2a6f97", "#7fb2d1", "#e07a1f")


def bars(title, unit, series, rows):
    """`rows` are (label, values), a value None where there is none; `series` names the values."""
    values = [value for _, row in rows for value in row if value]
    low = 10 ** math.floor(math.log10(min(values)))
    high = 10 ** math.ceil(math.log10(max(values)))
    scale = WIDTH / math.log10(high / low)
    group = ROW * len(series) + 10
    height = TOP + group * len(rows) + 30
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABEL + WIDTH + 90}" height="{height}" '
           f'font-family="sans-serif" font-size="12">',
           '<rect width="100%" height="100%" fill="white"/>',
           f'<text x="10" y="18" font-size="14" font-weight="bold">{escape(title)}</text>']
    for index, name in enumerate(series):
        x = LABEL + 150 * index
        out.append(f'<rect x="{x}" y="27" width="12" height="12" fill="{COLORS[index]}"/>'
                   f'<text x="{x + 17}" y="37">{escape(name)}</text>')
    decade = low
    while decade <= high:
        x = LABEL + scale * math.log10(decade / low)
        out.append(f'<line x1="{x:.1f}" y1="{TOP - 5}" x2="{x:.1f}" y2="{height - 25}" stroke="#ccc"/>'
                   f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle">{decade:g} {unit}</text>')
        decade *= 10
    for place, (label, row) in enumerate(rows):
        y = TOP + group * place
        out.append(f'<text x="{LABEL - 8}" y="{y + group / 2}" text-anchor="end">{escape(label)}</text>')
        for index, value in enumerate(row):
            if not value:
                continue
            number = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
            length = max(1.0, scale * math.log10(value / low))
            out.append(f'<rect x="{LABEL}" y="{y + ROW * index}" width="{length:.1f}" '
                       f'height="{ROW - 4}" fill="{COLORS[index]}"/>'
                       f'<text x="{LABEL + length + 5:.1f}" y="{y + ROW * index + 12}">'
                       f'{number}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"
