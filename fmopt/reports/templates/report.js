// Comfort only: the page says everything without it. Tips for the plot's marks, sorting, copying, opening details to print.
const tip = document.getElementById("tip");
let shown = null;
function hide() {
  shown = null;
  tip.hidden = true;
}
function show(mark) {
  shown = mark;
  const box = mark.querySelector(".at").getBoundingClientRect();
  tip.textContent = mark.dataset.tip;
  tip.hidden = false;
  const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
  const above = box.top - tip.offsetHeight - 10;
  tip.style.left = left + "px";
  tip.style.top = (above > 4 ? above : box.bottom + 10) + "px";
}
for (const mark of document.querySelectorAll("a[data-tip]")) {
  mark.querySelector("title")?.remove();
  for (const on of ["pointerenter", "focus"]) mark.addEventListener(on, () => show(mark));
  for (const off of ["pointerleave", "blur"]) mark.addEventListener(off, hide);
}
addEventListener("scroll", () => { if (shown) show(shown); }, { passive: true });  // a mark reached by key is scrolled to
addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

for (const head of document.querySelectorAll("th[data-sort]")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const value = (row) => parseFloat(row.children[head.cellIndex].dataset.v);
    const rows = [...body.rows].sort((a, b) => {
      const x = value(a), y = value(b);
      if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
      return up ? x - y : y - x;
    });
    body.append(...rows);
  });
}

for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.of).textContent);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
}
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const box of opened) box.open = true;
});
addEventListener("afterprint", () => { for (const box of opened) box.open = false; });
