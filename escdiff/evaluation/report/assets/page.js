for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentElement, row = head.parentElement, body = row.closest("table").tBodies[0]
  const column = [...row.children].indexOf(head), down = head.getAttribute("aria-sort") === "ascending"
  const number = text => parseFloat(text.replace(/[,\s]/g, "").replace("−", "-"))
  const key = line => line.children[column].textContent
  const order = (a, b) => {
    const [x, y] = [number(key(a)), number(key(b))]
    if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1  // gaps stay at the end
    const found = isNaN(x) ? key(a).localeCompare(key(b)) : x - y
    return down ? -found : found
  }
  body.append(...[...body.rows].sort(order))
  for (const other of row.children) other.removeAttribute("aria-sort")
  head.setAttribute("aria-sort", down ? "descending" : "ascending")
}
