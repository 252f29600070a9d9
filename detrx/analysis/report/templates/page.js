"use strict";
// Tables that sort by a click on a head, images that open large, and a page that prints whole.
(() => {
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
