"use strict";
(() => {
  const tooltip = document.createElement("div");
  tooltip.id = "tooltip";
  tooltip.hidden = true;
  document.body.append(tooltip);

  const text = (value) =>
    value === null || !Number.isFinite(value) ? "–"
      : Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));

  function nearest(values, wanted) {
    let best = 0;
    values.forEach((value, i) => {
      if (Math.abs(value - wanted) < Math.abs(values[best] - wanted)) best = i;
    });
    return best;
  }

  function toPixel(axis, value) {
    const scale = axis.log ? Math.log10 : (x) => x;
    const part = (scale(value) - scale(axis.low)) / (scale(axis.high) - scale(axis.low));
    return axis.begin + part * (axis.end - axis.begin);
  }

  function show(title, rows, x, y) {
    const head = document.createElement("strong");
    head.textContent = title;
    const lines = rows.map(([colour, name, value]) => {
      const line = document.createElement("div");
      const key = document.createElement("span");
      key.className = `key ${colour}`;
      const label = document.createElement("span");
      label.textContent = name;
      const figure = document.createElement("b");
      figure.textContent = value;
      line.append(key, label, figure);
      return line;
    });
    tooltip.replaceChildren(head, ...lines);
    tooltip.hidden = false;
    const box = tooltip.getBoundingClientRect();
    const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
    tooltip.style.left = `${Math.max(4, left)}px`;
    tooltip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - box.height - 4))}px`;
  }

  // What each kind of chart has at a place: how many stops there are, which one is nearest, and what to say there.
  const kinds = {
    lines(data) {
      const places = [...new Set(data.series.flatMap((each) => each.x))].sort((a, b) => a - b);
      const pixels = places.map((value) => toPixel(data.xAxis, value));
      return {
        count: places.length,
        find: (x) => nearest(pixels, x),
        at: (i) => ({
          x: pixels[i],
          title: `${data.label} ${text(places[i])}`,
          rows: data.series
            .map((each) => [each.colour, each.name, each.x.indexOf(places[i]), each])
            .filter(([, , k]) => k >= 0)
            .map(([colour, name, k, each]) => [colour, name, text(each.y[k])]),
        }),
      };
    },
    bars(data) {
      const middles = data.labels.map((_, i) => toPixel(data.xAxis, (data.edges[i] + data.edges[i + 1]) / 2));
      return {
        count: middles.length,
        find: (x) => nearest(middles, x),
        at: (i) => ({
          x: middles[i],
          title: data.labels[i],
          rows: data.series.map((each) => [each.colour, each.name, text(each.y[i])]),
        }),
      };
    },
    points(data) {
      const order = data.x.map((_, i) => i);
      return {
        count: order.length,
        find: (x, y) => nearest(order.map((i) => Math.hypot(data.x[i] - x, data.y[i] - y)), 0),
        at: (i) => ({ x: data.x[i], y: data.y[i], title: data.labels[i], rows: [] }),
      };
    },
  };

  for (const svg of document.querySelectorAll("svg[data-chart]")) {
    const data = JSON.parse(svg.dataset.chart);
    const chart = kinds[data.kind](data);
    const view = svg.viewBox.baseVal;
    const mark = document.createElementNS(svg.namespaceURI, data.kind === "points" ? "circle" : "line");
    mark.setAttribute("class", "mark");
    mark.setAttribute("visibility", "hidden");
    svg.append(mark);
    let stop = -1;
    const hide = () => {
      stop = -1;
      tooltip.hidden = true;
      mark.setAttribute("visibility", "hidden");
    };
    const go = (i, clientX, clientY) => {
      stop = Math.max(0, Math.min(chart.count - 1, i));
      const found = chart.at(stop);
      const place = data.kind === "points"
        ? { cx: found.x, cy: found.y, r: 6 }
        : { x1: found.x, x2: found.x, y1: 14, y2: view.height - 42 };
      for (const [key, value] of Object.entries(place)) mark.setAttribute(key, value);
      mark.setAttribute("visibility", "visible");
      const box = svg.getBoundingClientRect();
      show(found.title, found.rows, clientX ?? box.left + (found.x / view.width) * box.width, clientY ?? box.top + 20);
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * view.width;
      const y = ((event.clientY - box.top) / box.height) * view.height;
      go(chart.find(x, y), event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") hide();
      if (!step) return;
      event.preventDefault();
      go(stop + step);
    });
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const numeric = head.classList.contains("number");
        const before = head.getAttribute("aria-sort");
        const rising = before === "none" ? !numeric : before === "descending";
        const key = (row) => {
          const shown = row.cells[column].textContent.trim();
          return numeric ? Number.parseFloat(row.cells[column].dataset.value ?? shown) : shown;
        };
        const compare = (a, b) => {
          const [x, y] = [key(a), key(b)];
          if (!numeric) return x.localeCompare(y, "en", { numeric: true }) * (rising ? 1 : -1);
          if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
          return (x - y) * (rising ? 1 : -1);
        };
        table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
        heads.forEach((each) => each.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      });
    });
  }

  const viewer = document.createElement("dialog");
  viewer.setAttribute("aria-label", "Enlarged image");
  const large = document.createElement("img");
  const caption = document.createElement("p");
  const close = document.createElement("button");
  close.type = "button";
  close.textContent = "Close";
  close.addEventListener("click", () => viewer.close());
  viewer.append(large, caption, close);
  viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
  document.body.append(viewer);
  for (const image of document.querySelectorAll(".pictures img")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "enlarge";
    image.replaceWith(button);
    button.append(image);
    button.addEventListener("click", () => {
      large.src = image.src;
      large.alt = image.alt;
      caption.textContent = image.closest("figure").querySelector("figcaption").textContent;
      viewer.showModal();
    });
  }

  addEventListener("beforeprint", () => {
    for (const each of document.querySelectorAll("details")) each.open = true;
  });
})();
