(function () {
  "use strict";
  const root = document.documentElement;
  const themes = JSON.parse(document.getElementById("themes").textContent);
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: false,
    scrollZoom: false,
  };
  const charts = [];
  let picked = null;

  function theme() {
    return picked || (system.matches ? "dark" : "light");
  }

  function layoutOf(view) {
    return Object.assign({}, view.layout, { template: themes[theme()] });
  }

  // Numbers in narrow cells would run into each other.
  function dataOf(view, width) {
    const meta = view.layout.meta;
    if (!meta || !meta.labelsFromPx || width >= meta.labelsFromPx) return view.data;
    return view.data.map(function (trace) {
      return trace.texttemplate ? Object.assign({}, trace, { texttemplate: "" }) : trace;
    });
  }

  let resizing = 0;
  window.addEventListener("resize", function () {
    window.clearTimeout(resizing);
    resizing = window.setTimeout(function () {
      charts.forEach(function (chart) {
        const meta = chart.spec.views[chart.view].layout.meta;
        if (chart.drawn && meta && meta.labelsFromPx && chart.width !== chart.element.clientWidth) draw(chart);
      });
    }, 200);
  });

  function applyTheme() {
    root.dataset.theme = theme();
    charts.forEach(function (chart) {
      if (chart.drawn) Plotly.relayout(chart.element, { template: themes[theme()] });
    });
  }

  function draw(chart) {
    const view = chart.spec.views[chart.view];
    chart.element.style.minHeight = view.layout.height + "px";
    chart.drawn = true;
    chart.width = chart.element.clientWidth;
    return Plotly.react(chart.element, dataOf(view, chart.width), layoutOf(view), config).then(function () {
      if (chart.spec.axes) return pickAxes(chart);
    });
  }

  function pickAxes(chart) {
    const axes = chart.spec.axes;
    const x = axes.choices[axes.x];
    const y = axes.choices[axes.y];
    const line = axes.fronts[axes.y][axes.x];
    const xs = x.values.slice();
    const ys = y.values.slice();
    xs[axes.front] = line.map(function (corner) { return corner[0]; });
    ys[axes.front] = line.map(function (corner) { return corner[1]; });
    return Plotly.update(chart.element, { x: xs, y: ys }, {
      "xaxis.title.text": x.title,
      "xaxis.ticksuffix": x.suffix,
      "xaxis.tickformat": x.format,
      "xaxis.type": x.log ? "log" : "linear",
      "xaxis.autorange": true,
      "yaxis.title.text": y.title,
      "yaxis.ticksuffix": y.suffix,
      "yaxis.tickformat": y.format,
      "yaxis.type": y.log ? "log" : "linear",
      "yaxis.autorange": true,
    });
  }

  function onPick(id, action) {
    const menu = document.getElementById(id);
    if (menu) menu.addEventListener("change", function () { action(Number(menu.value)); });
  }

  function prepare(element) {
    const spec = JSON.parse(document.getElementById(element.id + "-data").textContent);
    const chart = { element: element, spec: spec, view: 0, drawn: false };
    charts.push(chart);
    onPick(element.id + "-view", function (index) { chart.view = index; draw(chart); });
    onPick(element.id + "-x", function (index) { spec.axes.x = index; pickAxes(chart); });
    onPick(element.id + "-y", function (index) { spec.axes.y = index; pickAxes(chart); });
  }

  // One chart per frame: the first screen can be read while the rest is drawn.
  function drawFrom(index) {
    if (index === charts.length) {
      root.dataset.ready = "true";
      return;
    }
    draw(charts[index]).then(function () {
      window.setTimeout(function () { drawFrom(index + 1); }, 0);
    });
  }

  function sortable(table) {
    const body = table.tBodies[0];
    table.querySelectorAll("thead th").forEach(function (head, column) {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", function () {
        const down = head.getAttribute("aria-sort") === "ascending";
        table.querySelectorAll("thead th").forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = Array.from(body.rows);
        rows.sort(function (a, b) {
          const left = a.cells[column].dataset.sort;
          const right = b.cells[column].dataset.sort;
          if (left === undefined || right === undefined) return (left === undefined) - (right === undefined);
          return (down ? -1 : 1) * (Number(left) - Number(right));
        });
        rows.forEach(function (row) { body.appendChild(row); });
      });
    });
  }

  function markCurrent() {
    const links = new Map();
    document.querySelectorAll(".nav a").forEach(function (link) { links.set(link.hash.slice(1), link); });
    const seen = new Set();
    const watcher = new IntersectionObserver(function (entries) {
      entries.forEach(function (entry) {
        if (entry.isIntersecting) seen.add(entry.target.id);
        else seen.delete(entry.target.id);
      });
      links.forEach(function (link) { link.removeAttribute("aria-current"); });
      const first = Array.from(links.keys()).find(function (name) { return seen.has(name); });
      if (first) links.get(first).setAttribute("aria-current", "true");
    }, { rootMargin: "-80px 0px -55% 0px" });
    document.querySelectorAll("main > section").forEach(function (section) { watcher.observe(section); });
  }

  document.querySelectorAll(".plot").forEach(prepare);
  document.querySelectorAll("table.sortable").forEach(sortable);
  document.getElementById("theme").addEventListener("click", function () {
    picked = theme() === "dark" ? "light" : "dark";
    applyTheme();
  });
  system.addEventListener("change", applyTheme);
  window.addEventListener("beforeprint", function () {
    root.dataset.before = picked || "";
    picked = "light";
    applyTheme();
    document.querySelectorAll("details").forEach(function (item) { item.open = true; });
  });
  window.addEventListener("afterprint", function () {
    picked = root.dataset.before || null;
    applyTheme();
  });
  markCurrent();
  applyTheme();
  drawFrom(0);
})();
