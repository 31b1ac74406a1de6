/**
 * Draws cubes on a canvas: a camera that looks at the ground, and the way back from a point of the
 * screen. World: x to the right, y up, z towards the viewer; a cube has side 1.
 */

const FACES = [
  [[0, 1, 0], [[-1, 1, -1], [-1, 1, 1], [1, 1, 1], [1, 1, -1]]],
  [[0, -1, 0], [[-1, -1, -1], [1, -1, -1], [1, -1, 1], [-1, -1, 1]]],
  [[1, 0, 0], [[1, -1, -1], [1, 1, -1], [1, 1, 1], [1, -1, 1]]],
  [[-1, 0, 0], [[-1, -1, -1], [-1, -1, 1], [-1, 1, 1], [-1, 1, -1]]],
  [[0, 0, 1], [[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]]],
  [[0, 0, -1], [[-1, -1, -1], [-1, 1, -1], [1, 1, -1], [1, -1, -1]]],
];
const LIGHT = normalize([0.45, 0.8, 0.35]);
export const GROUND = 6; // the ground reaches from -GROUND to GROUND
const NEAR = 0.1;

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const minus = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
const plus = (a, b, by = 1) => [a[0] + b[0] * by, a[1] + b[1] * by, a[2] + b[2] * by];
const cross = (a, b) => [
  a[1] * b[2] - a[2] * b[1],
  a[2] * b[0] - a[0] * b[2],
  a[0] * b[1] - a[1] * b[0],
];
function normalize(a) {
  const length = Math.hypot(...a);
  return a.map((x) => x / length);
}

export class View {
  yaw = 0.55;
  pitch = 0.5;
  distance = 15;
  #canvas;
  #context;
  #faces = []; // as drawn, the farthest first: {key, points}

  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
  }

  /** Look from elsewhere: by angles in radians, and a factor of the distance. */
  turn(yaw, pitch, zoom = 1) {
    this.yaw += yaw;
    this.pitch = Math.min(Math.max(this.pitch + pitch, 0.12), 1.5);
    this.distance = Math.min(Math.max(this.distance * zoom, 5), 40);
  }

  #camera() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const flat = Math.cos(this.pitch);
    const away = [flat * Math.sin(this.yaw), Math.sin(this.pitch), flat * Math.cos(this.yaw)];
    const eye = plus([0, 0.3, 0], away, this.distance);
    const forward = away.map((x) => -x);
    const right = normalize(cross(forward, [0, 1, 0]));
    const up = cross(right, forward);
    return { eye, forward, right, up, width, height, focus: Math.min(width, height * 1.35) * 0.95 };
  }

  #project({ eye, forward, right, up, width, height, focus }, point) {
    const to = minus(point, eye);
    const scale = focus / Math.max(dot(to, forward), NEAR);
    return [width / 2 + dot(to, right) * scale, height / 2 - dot(to, up) * scale];
  }

  /** Where the ray through a point of the screen meets the plane of height `y`; null: nowhere. */
  at([sx, sy], y) {
    const { eye, forward, right, up, width, height, focus } = this.#camera();
    const side = plus(forward, right, (sx - width / 2) / focus);
    const ray = plus(side, up, (height / 2 - sy) / focus);
    const t = (y - eye[1]) / ray[1];
    return t > 0 && t < 200 ? plus(eye, ray, t) : null;
  }

  /** World units that one pixel is high at `point`. */
  unitsPerPixel(point) {
    const { eye, forward, focus } = this.#camera();
    return dot(minus(point, eye), forward) / focus;
  }

  /** Key of the cube that was last drawn at a point of the screen, undefined where there is none. */
  pick(point) {
    return this.#faces.findLast(({ points }) => contains(points, point))?.key;
  }

  /**
   * Draw `cubes` (`{key, position, color, outlines: [colour]}`) and `cursors` (`{name, colour,
   * position}`).
   */
  draw(cubes, cursors) {
    const canvas = this.#canvas;
    const ratio = globalThis.devicePixelRatio ?? 1;
    const [width, height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio].map(Math.round);
    if (canvas.width !== width || canvas.height !== height) {
      Object.assign(canvas, { width, height });
    }
    const context = this.#context;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const camera = this.#camera();
    const style = getComputedStyle(canvas);
    this.#ground(camera, style.getPropertyValue("--grid"));
    for (const { position } of cubes) {
      this.#shade(camera, position, style.getPropertyValue("--shadow"));
    }
    this.#faces = [];
    const far = ({ position }) => Math.hypot(...minus(position, camera.eye));
    for (const cube of [...cubes].sort((a, b) => far(b) - far(a))) this.#cube(camera, cube);
    for (const cursor of cursors) this.#cursor(camera, cursor);
  }

  #path(points) {
    const context = this.#context;
    context.beginPath();
    points.forEach(([x, y], i) => (i === 0 ? context.moveTo(x, y) : context.lineTo(x, y)));
  }

  #ground(camera, colour) {
    const context = this.#context;
    context.strokeStyle = colour;
    context.lineWidth = 1;
    for (let i = -GROUND; i <= GROUND; i++) {
      for (const ends of [[[i, 0, -GROUND], [i, 0, GROUND]], [[-GROUND, 0, i], [GROUND, 0, i]]]) {
        this.#path(ends.map((end) => this.#project(camera, end)));
        context.stroke();
      }
    }
  }

  /** The shadow on the ground: farther from the light, softer for what is higher. */
  #shade(camera, [x, y, z], colour) {
    const context = this.#context;
    const high = Math.max(y - 0.5, 0);
    const [dx, dz] = [(-LIGHT[0] / LIGHT[1]) * high, (-LIGHT[2] / LIGHT[1]) * high];
    const corners = [[-1, -1], [1, -1], [1, 1], [-1, 1]];
    const half = 0.56;
    const points = corners.map(([cx, cz]) =>
      this.#project(camera, [x + dx + cx * half, 0, z + dz + cz * half]),
    );
    this.#path(points);
    context.closePath();
    context.globalAlpha = 1 / (1 + high);
    context.fillStyle = colour;
    context.fill();
    context.globalAlpha = 1;
  }

  #cube(camera, { key, position, color, outlines }) {
    const context = this.#context;
    const shown = FACES.filter(([normal]) => {
      const centre = plus(position, normal, 0.5);
      return dot(normal, minus(camera.eye, centre)) > 0;
    });
    const drawn = shown.map(([normal, corners]) => {
      const points = corners.map((corner) => this.#project(camera, plus(position, corner, 0.5)));
      return { key, points, colour: lit(color, 0.55 + 0.45 * Math.max(dot(normal, LIGHT), 0)) };
    });
    context.lineJoin = "round";
    for (const face of drawn) {
      this.#path(face.points);
      context.closePath();
      context.fillStyle = context.strokeStyle = face.colour;
      context.lineWidth = 1;
      context.fill();
      context.stroke();
      this.#faces.push(face);
    }
    outlines.forEach((colour, i) => {
      context.strokeStyle = colour;
      context.lineWidth = 2.5;
      context.setLineDash(i === 0 ? [] : [7, 7]);
      for (const face of drawn) {
        this.#path(face.points);
        context.closePath();
        context.stroke();
      }
      context.setLineDash([]);
    });
  }

  #cursor(camera, { name, colour, position }) {
    const context = this.#context;
    const [x, y] = this.#project(camera, position);
    this.#path([[x, y], [x + 4, y + 16], [x + 8, y + 11], [x + 15, y + 11]]);
    context.closePath();
    context.fillStyle = colour;
    context.strokeStyle = "#fff";
    context.lineWidth = 1.5;
    context.stroke();
    context.fill();
    context.font = "600 12px system-ui, sans-serif";
    const width = context.measureText(name).width;
    context.beginPath();
    context.roundRect(x + 12, y + 15, width + 14, 20, 10);
    context.fill();
    context.fillStyle = "#fff";
    context.textBaseline = "middle";
    context.fillText(name, x + 19, y + 25.5);
  }
}

function lit(color, by) {
  const parts = [1, 3, 5].map((at) => Math.round(parseInt(color.slice(at, at + 2), 16) * by));
  return `rgb(${parts.join(" ")})`;
}

/** Whether a point is inside a convex polygon. */
function contains(points, [px, py]) {
  let sign = 0;
  return points.every(([ax, ay], i) => {
    const [bx, by] = points[(i + 1) % points.length];
    const side = Math.sign((bx - ax) * (py - ay) - (by - ay) * (px - ax));
    if (side === 0) return true;
    if (sign === 0) sign = side;
    return side === sign;
  });
}
