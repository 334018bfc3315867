(function () {
  "use strict";
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("data").textContent);
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const state = { phase: "prefill", size: Object.keys(data.units).includes("time_s") ? "time_s" : "bytes", dark: null };
  const cells = Array.from(document.querySelectorAll(".layers button"));
  const shown = {};
  cells.forEach(function (cell) { if (!(cell.dataset.part in shown)) shown[cell.dataset.part] = cell; });

  function theme() {
    root.dataset.theme = (state.dark === null ? system.matches : state.dark) ? "dark" : "light";
  }

  function channels(colour) {
    return [1, 3, 5].map(function (i) { return parseInt(colour.slice(i, i + 2), 16); });
  }

  function colourAt(place) {
    const stops = data.scale;
    for (let i = 1; i < stops.length; i++) {
      if (place <= stops[i][0]) {
        const part = (place - stops[i - 1][0]) / (stops[i][0] - stops[i - 1][0]);
        const low = channels(stops[i - 1][1]);
        const high = channels(stops[i][1]);
        return low.map(function (value, c) { return Math.round(value + part * (high[c] - value)); });
      }
    }
    return channels(stops[stops.length - 1][1]);
  }

  function isBright(rgb) {
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 150;
  }

  // Sizes of operators differ by powers of ten, so that colours follow the logarithm.
  function scaleOf(values) {
    const positive = values.filter(function (value) { return value > 0; });
    const high = Math.log10(Math.max.apply(null, positive));
    const low = Math.max(Math.log10(Math.min.apply(null, positive)), high - 4);
    return { low: low, high: high, place: function (value) {
      if (!(value > 0)) return 0;
      return high > low ? Math.min(1, Math.max(0, (Math.log10(value) - low) / (high - low))) : 1;
    } };
  }

  function short(value) {
    const unit = data.units[state.size];
    if (!data.sums.includes(state.size)) return value.toPrecision(3) + " " + unit;
    const units = ["p", "n", "µ", "m", "", "k", "M", "G", "T", "P", "E"];
    const step = value > 0 ? Math.max(-4, Math.min(6, Math.floor(Math.log10(value) / 3 + 1e-9))) : 0;
    return (value / Math.pow(1000, step)).toPrecision(3) + " " + units[step + 4] + unit;
  }

  function valueOf(row) { return row[state.phase][state.size]; }

  function rowsOf(cell) { return data.variants[Number(cell.dataset.variant)]; }

  // Bits have no sum: a layer shows the mean over its operators that have weights.
  function sums(rows) {
    const add = function (size) {
      return rows.reduce(function (sum, row) { return sum + row[state.phase][size]; }, 0);
    };
    if (state.size === "intensity") return add("flop") / Math.max(1, add("bytes"));
    if (state.size === "bits") return add("bits") / Math.max(1, rows.filter(valueOf).length);
    return add(state.size);
  }

  function share(cell) {
    if (!data.sums.includes(state.size)) return "";
    const whole = cells.reduce(function (sum, other) { return sum + sums(rowsOf(other)); }, 0);
    return ", " + (100 * sums(rowsOf(cell)) / whole).toPrecision(3) + " % of the model";
  }

  function paint() {
    const all = [].concat.apply([], data.variants.map(function (rows) { return rows.map(valueOf); }));
    const scale = scaleOf(all);
    document.querySelectorAll("[data-op]").forEach(function (element) {
      const row = rowsOf(shown[element.dataset.part])[Number(element.dataset.op)];
      const rgb = colourAt(scale.place(valueOf(row)));
      const css = "rgb(" + rgb.join(",") + ")";
      if (element.tagName === "g") {
        element.querySelector("rect").style.fill = css;
        element.querySelector("[data-value]").textContent = row[state.phase].text[state.size];
        element.classList.toggle("dark", isBright(rgb));
      } else {
        element.querySelector(".swatch").style.background = css;
        Object.keys(data.units).forEach(function (size) {
          element.querySelector("[data-size=" + size + "]").textContent = row[state.phase].text[size];
        });
      }
    });
    const totals = data.variants.map(sums);
    const parts = scaleOf(totals);
    cells.forEach(function (button) {
      const total = totals[Number(button.dataset.variant)];
      const rgb = colourAt(parts.place(total));
      button.style.background = "rgb(" + rgb.join(",") + ")";
      button.style.color = isBright(rgb) ? "#1d2330" : "#fff";
      button.title = button.dataset.title + ": " + short(total) + share(button);
    });
    const current = document.querySelector(".layers [aria-current]") || shown[Object.keys(shown)[1]] || cells[0];
    document.getElementById("share").textContent = current.title;
    document.querySelector("[data-low]").textContent = short(Math.pow(10, scale.low));
    document.querySelector("[data-high]").textContent = short(Math.pow(10, scale.high));
    document.querySelectorAll(".choice button").forEach(function (button) {
      const on = state[button.dataset.kind] === button.dataset.pick;
      button.setAttribute("aria-pressed", String(on));
    });
  }

  function open(button, scroll) {
    document.querySelectorAll(".layers [aria-current]").forEach(function (other) {
      other.removeAttribute("aria-current");
    });
    button.setAttribute("aria-current", "true");
    shown[button.dataset.part] = button;
    paint();
    const card = document.getElementById("part-" + button.dataset.part);
    card.open = true;
    card.querySelector("[data-chosen]").textContent = button.dataset.layer ? "showing layer " + button.dataset.layer : "";
    if (scroll) card.scrollIntoView({ block: "start" });
  }

  // "layer 7", "7", a module path such as model.layers.7, or that and an operator of the layer.
  function cellOf(wanted) {
    const number = wanted.match(/^(?:layer\s*)?(\d+)$/);
    return cells.find(function (cell) {
      const path = (cell.dataset.path || "").toLowerCase();
      if (number) return cell.dataset.layer === String(Number(number[1]));
      return path !== "" && (wanted === path || wanted.startsWith(path + "."));
    });
  }

  function find(text) {
    const wanted = text.trim().toLowerCase();
    const cell = cellOf(wanted);
    if (cell) open(cell, false);
    const inside = cell ? wanted.slice((cell.dataset.path || "").length + 1) : wanted;
    const whole = cell && /^(layer\s*)?\d+$/.test(wanted) ? "" : inside;
    document.querySelectorAll("[data-op]").forEach(function (element) {
      const here = !cell || element.dataset.part === cell.dataset.part;
      const hit = here && whole !== "" && element.dataset.name.toLowerCase().includes(whole);
      element.classList.toggle("hit", hit);
      if (hit) element.closest("details").open = true;
    });
  }

  document.querySelectorAll(".choice button").forEach(function (button) {
    button.addEventListener("click", function () {
      state[button.dataset.kind] = button.dataset.pick;
      paint();
    });
  });
  cells.forEach(function (button) {
    button.addEventListener("click", function () { open(button, true); });
  });
  document.getElementById("find").addEventListener("input", function (event) { find(event.target.value); });
  document.getElementById("theme").addEventListener("click", function () {
    state.dark = root.dataset.theme !== "dark";
    theme();
  });
  system.addEventListener("change", theme);
  document.querySelector(".legend i").style.background =
    "linear-gradient(90deg," + data.scale.map(function (stop) { return stop[1]; }).join(",") + ")";
  theme();
  paint();
})();
