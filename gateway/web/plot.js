// @ts-check
/** A small plot over time: a line with its area, and a mark where the pointer is. */

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 60;
const ABOVE = 4;

/** @param {string} name @param {string} className */
function shape(name, className) {
  const element = document.createElementNS(SVG, name);
  element.setAttribute("class", className);
  return element;
}

export class Plot {
  /** @param {string} label @param {(index: number | null) => void} onPoint Told where the pointer is. */
  constructor(label, onPoint) {
    /** @type {number[]} */
    this.numbers = [];
    /** @type {number | null} Where the pointer is. */
    this.index = null;
    this.onPoint = onPoint;
    this.element = document.createElementNS(SVG, "svg");
    this.element.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.element.setAttribute("preserveAspectRatio", "none");
    this.element.setAttribute("role", "img");
    this.element.setAttribute("aria-label", label);
    this.area = shape("path", "area");
    this.line = shape("path", "line");
    this.cursor = shape("path", "cursor");
    this.element.append(this.area, this.line, this.cursor);
    this.element.addEventListener("pointermove", (event) => this.point(event));
    this.element.addEventListener("pointerleave", () => this.mark(null));
  }

  /** @param {number[]} numbers The newest last. */
  show(numbers) {
    this.numbers = numbers;
    const most = Math.max(...numbers, 1e-9);
    const points = numbers.map(
      (number, index) =>
        `${this.x(index).toFixed(1)},${(HEIGHT - (number / most) * (HEIGHT - ABOVE)).toFixed(1)}`,
    );
    this.line.setAttribute("d", `M${points.join("L")}`);
    this.area.setAttribute("d", `M0,${HEIGHT}L${points.join("L")}L${WIDTH},${HEIGHT}Z`);
  }

  /** @param {number} index */
  x(index) {
    return (index / Math.max(1, this.numbers.length - 1)) * WIDTH;
  }

  /** @param {PointerEvent} event */
  point(event) {
    const { left, width } = this.element.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - left) / width));
    this.mark(Math.round(share * (this.numbers.length - 1)));
  }

  /** @param {number | null} index */
  mark(index) {
    this.index = index;
    const x = index === null ? null : this.x(index).toFixed(1);
    this.cursor.setAttribute("d", x === null ? "" : `M${x},0L${x},${HEIGHT}`);
    this.onPoint(index);
  }
}
