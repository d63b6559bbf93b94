// Turns every canvas of class "mesh" on the page: one WebGL context draws them all, each canvas gets a copy.
// A browser allows about 16 contexts a page; a report may hold a hundred meshes.
"use strict";
(() => {
  const FIELD_OF_VIEW = 40, ELEVATION = 15, MARGIN = 1.15, TURN_DEG_PER_SECOND = 24;
  const SHADERS = [
    `#version 300 es
    in vec3 position; in vec3 normal; in vec3 color;
    uniform vec3 right, up, back, center;
    uniform vec2 size; uniform float away, focal, near, far;
    out vec3 tint, facing;
    void main() {
      vec3 p = position * size.x + center;
      vec3 eye = vec3(dot(p, right), dot(p, up), dot(p, back) - away);
      facing = vec3(dot(normal, right), dot(normal, up), dot(normal, back));
      tint = color;
      float depth = (far + near) / (near - far) * eye.z + 2.0 * far * near / (near - far);
      gl_Position = vec4(eye.xy * focal / size.y, depth, -eye.z);
    }`,
    `#version 300 es
    precision mediump float;
    in vec3 tint, facing; out vec4 shown;
    void main() {
      vec3 n = normalize(facing);
      n = n.z < 0.0 ? -n : n;
      float light = 0.62 + 0.38 * max(dot(n, normalize(vec3(0.35, 0.6, 0.72))), 0.0);
      shown = vec4(min(tint * light * 1.06, 1.0), 1.0);
    }`,
  ];
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const shared = document.createElement("canvas");
  const gl = shared.getContext("webgl2", { antialias: true, alpha: true, premultipliedAlpha: true });
  let program = null;
  const locations = {};

  if (still) document.querySelectorAll("video[autoplay]").forEach((video) => { video.autoplay = false; video.pause(); });
  if (!gl) return;  // the words beside each canvas stay

  function prepare() {
    program = gl.createProgram();
    [gl.VERTEX_SHADER, gl.FRAGMENT_SHADER].forEach((kind, number) => {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, SHADERS[number]);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    });
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost())
      throw new Error(gl.getProgramInfoLog(program));
    for (const name of ["right", "up", "back", "center", "size", "away", "focal", "near", "far"])
      locations[name] = gl.getUniformLocation(program, name);
    gl.enable(gl.DEPTH_TEST);
  }

  function bytes(text) {
    return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
  }

  // Area-weighted normals at the vertices; positions are quantised alike along all axes, so no stretch to undo.
  function normals(positions, faces) {
    const sum = new Float32Array(positions.length);
    for (let i = 0; i < faces.length; i += 3) {
      const [a, b, c] = [3 * faces[i], 3 * faces[i + 1], 3 * faces[i + 2]];
      const [ux, uy, uz] = [0, 1, 2].map((k) => positions[b + k] - positions[a + k]);
      const [vx, vy, vz] = [0, 1, 2].map((k) => positions[c + k] - positions[a + k]);
      const across = [uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx];
      for (const corner of [a, b, c]) for (let k = 0; k < 3; k++) sum[corner + k] += across[k];
    }
    const short = new Int8Array(positions.length);
    for (let i = 0; i < sum.length; i += 3) {
      const length = Math.hypot(sum[i], sum[i + 1], sum[i + 2]) || 1;
      for (let k = 0; k < 3; k++) short[i + k] = Math.round(127 * sum[i + k] / length);
    }
    return short;
  }

  function upload(mesh) {
    const positions = new Uint16Array(bytes(mesh.data.positions));
    const faces = new Uint16Array(bytes(mesh.data.faces));
    mesh.array = gl.createVertexArray();
    gl.bindVertexArray(mesh.array);
    const attributes = [
      ["position", positions, gl.UNSIGNED_SHORT],
      ["normal", normals(positions, faces), gl.BYTE],
      ["color", new Uint8Array(bytes(mesh.data.colors)), gl.UNSIGNED_BYTE],
    ];
    for (const [name, values, type] of attributes) {
      gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
      gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
      const place = gl.getAttribLocation(program, name);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, 3, type, true, 0, 0);
    }
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, faces, gl.STATIC_DRAW);
    mesh.count = faces.length;
  }

  // The axes of fsd.cameras: z up, azimuth 0 in front on +y, growing counter-clockwise seen from above.
  function draw(mesh) {
    const { canvas } = mesh;
    const scale = Math.min(devicePixelRatio || 1, 2);
    const width = Math.max(1, Math.round(canvas.clientWidth * scale));
    const height = Math.max(1, Math.round(canvas.clientHeight * scale));
    if (shared.width !== width || shared.height !== height) Object.assign(shared, { width, height });
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    if (!mesh.array) upload(mesh);
    const [a, e] = [mesh.azimuth, mesh.elevation].map((degrees) => degrees * Math.PI / 180);
    const away = MARGIN * mesh.radius / Math.sin(FIELD_OF_VIEW / 2 * Math.PI / 180) / mesh.zoom;
    gl.viewport(0, 0, width, height);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.useProgram(program);
    gl.bindVertexArray(mesh.array);
    gl.uniform3f(locations.right, -Math.cos(a), -Math.sin(a), 0);
    gl.uniform3f(locations.up, Math.sin(e) * Math.sin(a), -Math.sin(e) * Math.cos(a), Math.cos(e));
    gl.uniform3f(locations.back, -Math.cos(e) * Math.sin(a), Math.cos(e) * Math.cos(a), Math.sin(e));
    gl.uniform3fv(locations.center, mesh.corner);
    gl.uniform2f(locations.size, mesh.extent, width / height);
    gl.uniform1f(locations.away, away);
    gl.uniform1f(locations.focal, 1 / Math.tan(FIELD_OF_VIEW / 2 * Math.PI / 180));
    gl.uniform1f(locations.near, Math.max(away - mesh.radius, 0.01 * mesh.radius) * 0.9);
    gl.uniform1f(locations.far, away + 1.1 * mesh.radius);
    gl.drawElements(gl.TRIANGLES, mesh.count, gl.UNSIGNED_SHORT, 0);
    const paper = canvas.getContext("2d");
    paper.clearRect(0, 0, width, height);
    paper.drawImage(shared, 0, 0);
    mesh.stale = false;
  }

  function listen(mesh) {
    const { canvas } = mesh;
    let last = null;
    const turn = (right, down) => {
      mesh.azimuth -= right;
      mesh.elevation = Math.max(-89, Math.min(89, mesh.elevation + down));
      mesh.turning = false;
      mesh.stale = true;
    };
    const zoom = (factor) => {
      mesh.zoom = Math.max(0.4, Math.min(6, mesh.zoom * factor));
      mesh.turning = false;
      mesh.stale = true;
    };
    canvas.addEventListener("pointerdown", (event) => {
      last = [event.clientX, event.clientY];
      canvas.setPointerCapture(event.pointerId);
      mesh.turning = false;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      turn((event.clientX - last[0]) * 0.5, (event.clientY - last[1]) * 0.5);
      last = [event.clientX, event.clientY];
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { last = null; });
    // Only once it was clicked: else a page full of meshes would not scroll under the wheel.
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas && !event.ctrlKey) return;
      event.preventDefault();
      zoom(Math.exp(-event.deltaY * 0.0015));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const keys = {
        ArrowLeft: () => turn(-10, 0), ArrowRight: () => turn(10, 0),
        ArrowUp: () => turn(0, -10), ArrowDown: () => turn(0, 10),
        "+": () => zoom(1.2), "-": () => zoom(1 / 1.2),
        " ": () => { mesh.turning = !mesh.turning; },
      };
      if (!keys[event.key] || event.metaKey || event.altKey) return;
      event.preventDefault();
      keys[event.key]();
    });
  }

  prepare();
  const meshes = [...document.querySelectorAll("canvas.mesh")].map((canvas) => {
    const data = canvas.dataset;
    const extent = Number(data.extent);
    const corner = data.corner.split(" ").map(Number);
    const mesh = {
      canvas, data, extent, corner, radius: Number(data.radius),
      azimuth: 0, elevation: ELEVATION, zoom: 1, turning: !still, stale: true, visible: false, array: null,
    };
    canvas.parentElement.classList.add("alive");
    listen(mesh);
    return mesh;
  });
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const mesh = meshes.find((one) => one.canvas === entry.target);
      mesh.visible = entry.isIntersecting;
      mesh.stale = true;
    }
  }, { rootMargin: "80px" });
  for (const mesh of meshes) watch.observe(mesh.canvas);
  addEventListener("resize", () => { for (const mesh of meshes) mesh.stale = true; });
  shared.addEventListener("webglcontextlost", (event) => event.preventDefault());
  shared.addEventListener("webglcontextrestored", () => {
    prepare();
    for (const mesh of meshes) Object.assign(mesh, { array: null, stale: true });
  });

  let before = performance.now();
  function frame(now) {
    const seconds = Math.min(0.1, (now - before) / 1000);
    before = now;
    for (const mesh of meshes) {
      if (!mesh.visible || gl.isContextLost()) continue;
      if (mesh.turning) mesh.azimuth += TURN_DEG_PER_SECOND * seconds;
      if (mesh.turning || mesh.stale) draw(mesh);
    }
    requestAnimationFrame(frame);
  }
  requestAnimationFrame(frame);
})();
