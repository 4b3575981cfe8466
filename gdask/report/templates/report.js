"use strict";
// Tables, links and pictures work without this: it sorts, enlarges and copies.
(function () {
  function key(cell) {
    if (!cell) { return ""; }
    const text = cell.dataset.value !== undefined ? cell.dataset.value : cell.textContent.trim();
    return text !== "" && isFinite(text) ? Number(text) : text;
  }
  function sort(table, column, head) {
    const down = head.getAttribute("aria-sort") !== "descending";
    const rows = Array.from(table.tBodies[0].rows).map(function (row, place) { return [key(row.cells[column]), place, row]; });
    rows.sort(function (a, b) {
      if (a[0] === "" || b[0] === "") { return (a[0] === "") - (b[0] === "") || a[1] - b[1]; }
      const alike = typeof a[0] === typeof b[0];
      const order = alike && typeof a[0] === "number" ? a[0] - b[0] : String(a[0]).localeCompare(String(b[0]));
      return (down ? -order : order) || a[1] - b[1];
    });
    table.querySelectorAll("th[aria-sort]").forEach(function (other) { other.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    rows.forEach(function (row) { table.tBodies[0].appendChild(row[2]); });
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    Array.from(table.tHead.rows[0].cells).forEach(function (head, column) {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "sort";
      while (head.firstChild) { button.appendChild(head.firstChild); }
      head.appendChild(button);
      button.addEventListener("click", function () { sort(table, column, head); });
    });
  });

  document.querySelectorAll(".viewer").forEach(function (viewer) {
    const canvas = viewer.querySelector(".canvas"), sheet = viewer.querySelector(".sheet");
    let scale = 1, base = 0;
    function zoom(to, x, y) {
      const before = scale;
      scale = Math.min(8, Math.max(1, to));
      base = base || sheet.clientWidth;
      canvas.classList.toggle("zoomed", scale > 1);
      sheet.style.width = scale === 1 ? "" : base * scale + "px";
      sheet.style.maxWidth = scale === 1 ? "" : "none";
      canvas.scrollLeft = (canvas.scrollLeft + x) * scale / before - x;
      canvas.scrollTop = (canvas.scrollTop + y) * scale / before - y;
    }
    [["−", "smaller", 0.5], ["+", "larger", 2], ["1:1", "as wide as the page", 0]].forEach(function (one) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = one[0];
      button.title = one[1];
      button.setAttribute("aria-label", one[1]);
      button.addEventListener("click", function () { zoom(one[2] ? scale * one[2] : 1, canvas.clientWidth / 2, canvas.clientHeight / 2); });
      viewer.querySelector(".zoom").appendChild(button);
    });
    canvas.addEventListener("keydown", function (event) {
      const step = { "+": 2, "=": 2, "-": 0.5 }[event.key];
      if (step) { event.preventDefault(); zoom(scale * step, canvas.clientWidth / 2, canvas.clientHeight / 2); }
    });
    sheet.querySelectorAll("a").forEach(function (link) {
      link.addEventListener("click", function (event) {
        if (event.ctrlKey || event.metaKey || event.shiftKey || event.detail === 0) { return; }
        event.preventDefault();
        const box = canvas.getBoundingClientRect();
        zoom(scale < 8 ? scale * 2 : 1, event.clientX - box.left, event.clientY - box.top);
      });
    });
  });

  document.querySelectorAll(".command").forEach(function (command) {
    if (!navigator.clipboard) { return; }
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "copy";
    button.addEventListener("click", function () {
      navigator.clipboard.writeText(command.querySelector("code").textContent).then(function () { button.textContent = "copied"; });
    });
    command.appendChild(button);
  });
})();
