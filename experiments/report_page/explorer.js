// The explorer: all numbers were computed by experiments/explorer.py along K times; here they are interpolated linearly between two of them.
// A position p in [0, K - 1] stands for a time: p = 0 is T, p = K - 1 the end. Fields live on grids over the view [-extent, extent]^2.
"use strict";
const data = JSON.parse(document.getElementById("explorer-data").textContent);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const floats = (text) => text && new Float32Array(bytes(text).buffer);
const paths = { ode: floats(data.ode), sde: floats(data.sde) };
const velocity = floats(data.velocity), score = floats(data.score), density = bytes(data.density);
const K = data.times.length, last = K - 1, SECONDS = 8;
const COLOURS = { ode: "#c2410c", sde: "#6d28d9", dropped: "#000000", score: "#3f4a55" };

const get = (id) => document.getElementById(id);
const canvas = get("view"), slider = get("time"), pen = canvas.getContext("2d");
const state = { p: 0, playing: false, before: 0, cross: null, dropped: [] };

const split = (p) => { const k = Math.min(Math.floor(p), last - 1); return [k, p - k]; };
const between = (values, p) => { const [k, w] = split(p); return (1 - w) * values[k] + w * values[k + 1]; };
const extent = (p) => between(data.extent, p);

// Particle i of paths [K, n, 2] at position p.
function at(path, n, i, p) {
  const [k, w] = split(p), a = 2 * (k * n + i), b = a + 2 * n;
  return [(1 - w) * path[a] + w * path[b], (1 - w) * path[a + 1] + w * path[b + 1]];
}

// A field [K, side, side, 2] at time k, bilinear in space; beyond the view it is that of the nearest edge.
function bilinear(field, side, k, x, y) {
  const place = (v) => Math.min(Math.max((v / data.extent[k] + 1) / 2 * (side - 1), 0), side - 1);
  const px = place(x), py = place(y), i = Math.min(Math.floor(px), side - 2), j = Math.min(Math.floor(py), side - 2);
  const u = px - i, v = py - j, start = 2 * (k * side * side + j * side + i);
  const mix = (c) => (1 - v) * ((1 - u) * field[start + c] + u * field[start + 2 + c])
    + v * ((1 - u) * field[start + 2 * side + c] + u * field[start + 2 * side + 2 + c]);
  return [mix(0), mix(1)];
}

function slope(p, x, y) {
  const [k, w] = split(p), a = bilinear(velocity, data.field, k, x, y), b = bilinear(velocity, data.field, k + 1, x, y);
  return [(1 - w) * a[0] + w * b[0], (1 - w) * a[1] + w * b[1]];
}

// One step of Heun's method from position p to q.
function heun(p, q, x, y) {
  const dt = between(data.times, q) - between(data.times, p), a = slope(p, x, y), b = slope(q, x + dt * a[0], y + dt * a[1]);
  return [x + dt * (a[0] + b[0]) / 2, y + dt * (a[1] + b[1]) / 2];
}

// The path [K, 1, 2] through (x, y) at position p, forwards and backwards, four steps between two times.
function flow(p, x, y) {
  const path = new Float32Array(2 * K);
  for (const direction of [1, -1]) {
    let [q, a, b] = [p, x, y];
    let next = direction > 0 ? Math.ceil(p) : Math.floor(p);
    for (; next >= 0 && next <= last; next += direction) {
      for (let step = 4; step > 0; step--) {
        const to = q + (next - q) / step;
        [a, b] = heun(q, to, a, b);
        q = to;
      }
      path[2 * next] = a;
      path[2 * next + 1] = b;
    }
  }
  return path;
}

function drop(x, y) {
  state.dropped.push(flow(state.p, x, y));
  draw();
}

// Pixels of a point of the plane, and back.
const pixel = (x, y, e) => [(x / e + 1) / 2 * canvas.width, (1 - y / e) / 2 * canvas.height];
const plane = (px, py, e) => [(2 * px / canvas.width - 1) * e, (1 - 2 * py / canvas.height) * e];

const cells = document.createElement("canvas");
cells.width = cells.height = data.cells;

// Density and score are drawn over the whole view, as at the nearest time: where the view moves, it is because the path scales, and they scale with it.
function drawDensity() {
  const k = Math.round(state.p), c = data.cells, image = new ImageData(c, c);
  for (let j = 0; j < c; j++) for (let i = 0; i < c; i++) {
    const d = Math.sqrt(density[k * c * c + (c - 1 - j) * c + i] / 255); // its root: faint parts are seen
    image.data.set([255 - 160 * d, 255 - 90 * d, 255 - 35 * d, 255], 4 * (j * c + i));
  }
  cells.getContext("2d").putImageData(image, 0, 0);
  pen.drawImage(cells, 0, 0, canvas.width, canvas.height);
}

function drawScore() {
  const k = Math.round(state.p), side = data.arrows, cell = canvas.width / (side - 1);
  pen.strokeStyle = COLOURS.score;
  pen.lineWidth = canvas.width / 500;
  pen.beginPath();
  for (let j = 0; j < side; j++) for (let i = 0; i < side; i++) {
    const n = 2 * (k * side * side + j * side + i), sx = data.sigma[k] * score[n], sy = data.sigma[k] * score[n + 1];
    const length = Math.hypot(sx, sy), scale = 0.9 * cell / (1 + length), dx = sx * scale, dy = -sy * scale;
    const x = i * cell, y = canvas.height - j * cell, turn = (c, s) => [x + dx - 0.3 * (c * dx - s * dy), y + dy - 0.3 * (s * dx + c * dy)];
    pen.moveTo(x, y);
    pen.lineTo(x + dx, y + dy);
    pen.lineTo(...turn(0.8, 0.6));
    pen.moveTo(x + dx, y + dy);
    pen.lineTo(...turn(0.8, -0.6));
  }
  pen.stroke();
}

function disc(x, y, radius, colour) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fillStyle = colour;
  pen.fill();
}

function drawAxes(e) {
  const size = Math.max(canvas.width / 50, 11 * canvas.width / canvas.clientWidth), step = 10 ** Math.floor(Math.log10(e)), ticks = e / step > 5 ? 2 * step : e / step > 2 ? step : step / 2;
  pen.font = `${size}px system-ui, sans-serif`;
  pen.strokeStyle = "#ffffff";
  pen.lineWidth = size / 4;
  for (let n = Math.ceil(-e / ticks); n * ticks < e; n++) {
    const [px] = pixel(n * ticks, 0, e), text = String(Number((n * ticks).toPrecision(3)));
    if (px < 2 * size || px > canvas.width - 2 * size) continue;
    pen.fillStyle = "#1b1f24";
    pen.fillRect(px, canvas.height - size / 2, 1, size / 2);
    pen.fillRect(0, canvas.height - px, size / 2, 1);
    for (const [align, x, y] of [["center", px, canvas.height - 0.8 * size], ["left", 0.8 * size, canvas.height - px + size / 3]]) {
      pen.textAlign = align;
      pen.strokeText(text, x, y); // a white rim: it is read on arrows, too
      pen.fillText(text, x, y);
    }
  }
}

function draw() {
  const p = state.p, e = extent(p), radius = canvas.width / 240;
  pen.fillStyle = "#ffffff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (get("density").checked) drawDensity();
  if (get("score").checked && score) drawScore();
  for (const name of ["ode", "sde"]) if (get(name).checked && paths[name])
    for (let i = 0; i < data.particles; i++) disc(...pixel(...at(paths[name], data.particles, i, p), e), radius, COLOURS[name]);
  for (const path of state.dropped) {
    pen.strokeStyle = COLOURS.dropped;
    pen.lineWidth = canvas.width / 400;
    pen.beginPath();
    for (let k = 0; k < K; k++) pen.lineTo(...pixel(path[2 * k], path[2 * k + 1], data.extent[k]));
    pen.stroke();
    const [px, py] = pixel(...at(path, 1, 0, p), e);
    disc(px, py, 2.4 * radius, "#ffffff");
    disc(px, py, 1.8 * radius, COLOURS.dropped);
  }
  if (state.cross) {
    const [px, py] = pixel(state.cross[0] * e, state.cross[1] * e, e), arm = canvas.width / 40;
    pen.fillStyle = COLOURS.dropped;
    pen.fillRect(px - arm, py - 1, 2 * arm, 2);
    pen.fillRect(px - 1, py - arm, 2, 2 * arm);
  }
  drawAxes(e);
  const t = between(data.times, p).toFixed(3), n = state.dropped.length;
  get("now").textContent = `t = ${t}, α = ${between(data.alpha, p).toFixed(3)}, σ = ${between(data.sigma, p).toFixed(3)}`;
  slider.setAttribute("aria-valuetext", `t = ${t}`);
  const where = n && at(state.dropped[n - 1], 1, 0, p).map((v) => v.toFixed(3)).join(", ");
  get("dropped").textContent = n ? `Dropped: ${n}; the last is at (${where}).` : "Click the picture to drop a particle.";
}

function seek(p) {
  state.p = Math.min(Math.max(p, 0), last);
  slider.value = state.p;
  draw();
}

function play(on) {
  state.playing = on;
  get("play").textContent = on ? "Pause" : "Play";
  if (!on) return;
  if (state.p >= last) seek(0);
  state.before = performance.now();
  requestAnimationFrame(function frame(now) {
    if (!state.playing) return;
    seek(state.p + Math.max(now - state.before, 0) / 1000 * last / SECONDS);
    state.before = now;
    if (state.p >= last) play(false); else requestAnimationFrame(frame);
  });
}

function resize() {
  canvas.width = canvas.height = Math.round(canvas.clientWidth * (window.devicePixelRatio || 1)) || 720;
  draw();
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
slider.max = last;
slider.value = state.p; // a page that is loaded again may have it where it was
for (const name of ["score", "sde"]) if (!(name === "score" ? score : paths.sde)) get(name).disabled = true;
for (const name of ["density", "score", "ode", "sde"]) get(name).addEventListener("change", draw);
slider.addEventListener("input", () => { play(false); seek(Number(slider.value)); });
get("play").addEventListener("click", () => play(!state.playing));
get("clear").addEventListener("click", () => { state.dropped = []; draw(); });
canvas.addEventListener("click", (event) => {
  const box = canvas.getBoundingClientRect(), scale = canvas.width / canvas.clientWidth;
  drop(...plane((event.clientX - box.left - canvas.clientLeft) * scale, (event.clientY - box.top - canvas.clientTop) * scale, extent(state.p)));
});
canvas.addEventListener("keydown", (event) => {
  const move = MOVES[event.key];
  if (move) state.cross = (state.cross || [0, 0]).map((v, i) => Math.min(Math.max(v + 0.05 * move[i], -1), 1));
  else if (event.key === "Enter" || event.key === " ") drop(...(state.cross || [0, 0]).map((v) => v * extent(state.p)));
  else return;
  event.preventDefault();
  draw();
});
canvas.addEventListener("blur", () => { state.cross = null; draw(); });
window.addEventListener("resize", resize);
resize();
