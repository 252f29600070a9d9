"use strict";
// Draws each chart when it comes near the screen, in the colours of the style sheet, and again where these change.
(() => {
  function colours() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const axis = {
      gridcolor: colour("grid"), zerolinecolor: colour("grid"), linecolor: colour("muted"), tickcolor: colour("muted"),
    };
    return {
      colorway: Array.from({ length: 8 }, (_, i) => colour(`c${i}`)),
      font: { color: colour("second"), family: style.getPropertyValue("--font"), size: 12.5 },
      hoverlabel: { bgcolor: colour("surface"), bordercolor: colour("line"), font: { color: colour("ink") } },
      modebar: { color: colour("muted"), activecolor: colour("ink"), bgcolor: "transparent" },
      paper_bgcolor: "transparent", plot_bgcolor: "transparent",
      shapedefaults: { line: { color: colour("muted") } },
      xaxis: axis, yaxis: axis,
    };
  }

  function draw(plot) {
    waiting.unobserve(plot);
    const { data, layout } = JSON.parse(plot.dataset.figure);
    const config = {
      displaylogo: false, responsive: true, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    };
    return Plotly.react(plot, data, { ...layout, template: { layout: colours() } }, config);
  }

  const waiting = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
    { rootMargin: "400px" },
  );
  const plots = [...document.querySelectorAll(".plot")];
  plots.forEach((plot) => waiting.observe(plot));
  const drawn = (plot) => plot.classList.contains("js-plotly-plot");
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.filter(drawn).forEach(draw));
  addEventListener("beforeprint", () => plots.filter((plot) => !drawn(plot)).forEach(draw));
})();
