// The page of `gptcli scaling`: the losses of networks of several sizes, and the curve of the law
// that is fitted to them.

drawChart(document.getElementById("law"), JSON.parse(document.getElementById("scaling").textContent));
document.documentElement.dataset.height = String(document.documentElement.scrollHeight);
