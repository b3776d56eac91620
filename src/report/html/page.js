// What every page does: tables that sort, and folded parts that unfold for print.
"use strict";
(() => {
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const downwards = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", downwards ? "descending" : "ascending");
        sort(table, column, downwards ? -1 : 1);
      });
    });
  }

  // Cells without a value stand last either way.
  function sort(table, column, direction) {
    const key = (row) => {
      const cell = row.cells[column];
      if (!cell || (cell.dataset.value === undefined && cell.textContent === "")) return null;
      return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
    };
    const order = (a, b) =>
      typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
    rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : direction * order(a, b)));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((part) => (part.open = true));
  });
  addEventListener("afterprint", () => opened.forEach((part) => (part.open = false)));
})();
