// The page of `gptcli compare` and `gptcli sweep`: charts of several runs.

for (const one of JSON.parse(document.getElementById("compare").textContent)) {
  drawChart(document.getElementById("losses"), one);
}
document.documentElement.dataset.height = String(document.documentElement.scrollHeight);
