// Names the cell of the confusion matrix under the pointer or the keyboard's cursor. Without it the page shows the same figures.
for (const matrix of document.querySelectorAll(".cells")) {
  const names = JSON.parse(matrix.dataset.names), rows = JSON.parse(matrix.dataset.counts).map((row) => new Map(row))
  const size = names.length, cursor = matrix.querySelector(".cursor"), readout = document.querySelector(".readout")
  const totals = rows.map((row) => [...row.values()].reduce((sum, count) => sum + count, 0))
  let row = 0, column = 0
  const show = (toRow, toColumn) => {
    row = toRow, column = toColumn
    const count = rows[row].get(column) ?? 0, total = totals[row]
    const share = total ? ` (${(100 * count / total).toFixed(1)}\u00a0%)` : ""
    const told = row === column ? `${names[row]}: right` : `${names[row]} mistaken for ${names[column]}`
    readout.textContent = `${told} in ${count} of ${total}${share}`
    for (const [side, place] of [["top", row], ["left", column]]) cursor.style[side] = `${100 * place / size}%`
    cursor.hidden = false
  }
  // A finger covers several cells: take the nearest one that holds an image.
  const nearest = (atRow, atColumn) => {
    let best = [Math.floor(atRow), Math.floor(atColumn)], least = 9
    rows.forEach((cells, r) => cells.forEach((_, c) => {
      const distance = (r + 0.5 - atRow) ** 2 + (c + 0.5 - atColumn) ** 2
      if (distance < least) least = distance, best = [r, c]
    }))
    return best
  }
  const point = (event) => {
    const box = matrix.getBoundingClientRect()
    const at = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width]
      .map((part) => Math.min(Math.max(part, 0), 0.999999) * size)
    show(...(event.pointerType === "touch" ? nearest(...at) : at.map(Math.floor)))
  }
  matrix.addEventListener("pointermove", point)
  matrix.addEventListener("pointerdown", point)
  matrix.addEventListener("focus", () => show(row, column))
  const filled = (r, c) => rows[r].has(c)
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }
  matrix.addEventListener("keydown", (event) => {
    if (!(event.key in moves)) return
    event.preventDefault()
    const [down, right] = moves[event.key]
    for (let r = row + down, c = column + right; r >= 0 && c >= 0 && r < size && c < size; r += down, c += right)
      if (filled(r, c)) return show(r, c)
  })
  matrix.tabIndex = 0
  readout.hidden = false
}
