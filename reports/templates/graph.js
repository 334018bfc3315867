(function () {
  "use strict";
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("data").textContent);
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const state = { phase: "prefill", size: "bytes", dark: null };

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
    const units = ["", "k", "M", "G", "T", "P", "E"];
    const step = Math.max(0, Math.min(6, Math.floor(Math.log10(Math.max(value, 1)) / 3)));
    const unit = { bytes: "B", flop: "FLOP", intensity: "FLOP/B" }[state.size];
    return (value / Math.pow(1000, step)).toPrecision(3) + " " + units[step] + unit;
  }

  function valueOf(row) { return row[state.phase][state.size]; }

  function sums(rows) {
    const add = function (size) {
      return rows.reduce(function (sum, row) { return sum + row[state.phase][size]; }, 0);
    };
    return state.size === "intensity" ? add("flop") / Math.max(1, add("bytes")) : add(state.size);
  }

  function paint() {
    const keys = Object.keys(data.parts);
    const all = [].concat.apply([], keys.map(function (key) { return data.parts[key].map(valueOf); }));
    const scale = scaleOf(all);
    document.querySelectorAll("[data-op]").forEach(function (element) {
      const row = data.parts[element.dataset.part][Number(element.dataset.op)];
      const rgb = colourAt(scale.place(valueOf(row)));
      const css = "rgb(" + rgb.join(",") + ")";
      if (element.tagName === "g") {
        element.querySelector("rect").style.fill = css;
        element.querySelector("[data-value]").textContent = row[state.phase].text[state.size];
        element.classList.toggle("dark", isBright(rgb));
      } else {
        element.querySelector(".swatch").style.background = css;
        ["flop", "bytes", "intensity"].forEach(function (size) {
          element.querySelector("[data-size=" + size + "]").textContent = row[state.phase].text[size];
        });
      }
    });
    const totals = {};
    keys.forEach(function (key) { totals[key] = sums(data.parts[key]); });
    const parts = scaleOf(keys.map(function (key) { return totals[key]; }));
    document.querySelectorAll(".layers button").forEach(function (button) {
      const rgb = colourAt(parts.place(totals[button.dataset.part]));
      button.style.background = "rgb(" + rgb.join(",") + ")";
      button.style.color = isBright(rgb) ? "#1d2330" : "#fff";
      button.title = button.dataset.title + ": " + short(totals[button.dataset.part]);
    });
    document.querySelector("[data-low]").textContent = short(Math.pow(10, scale.low));
    document.querySelector("[data-high]").textContent = short(Math.pow(10, scale.high));
    document.querySelectorAll(".choice button").forEach(function (button) {
      const on = state[button.dataset.kind] === button.dataset.pick;
      button.setAttribute("aria-pressed", String(on));
    });
  }

  function open(button) {
    document.querySelectorAll(".layers [aria-current]").forEach(function (other) {
      other.removeAttribute("aria-current");
    });
    button.setAttribute("aria-current", "true");
    const card = document.getElementById("part-" + button.dataset.part);
    card.open = true;
    card.querySelector("[data-chosen]").textContent = button.dataset.layer ? "showing layer " + button.dataset.layer : "";
    card.scrollIntoView({ block: "start" });
  }

  function find(text) {
    const wanted = text.trim().toLowerCase();
    document.querySelectorAll("[data-op]").forEach(function (element) {
      const hit = wanted !== "" && element.dataset.name.toLowerCase().includes(wanted);
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
  document.querySelectorAll(".layers button").forEach(function (button) {
    button.addEventListener("click", function () { open(button); });
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
