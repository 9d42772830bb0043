// The page of `gptcli scaling`: the losses of networks by size, and the law through them.

drawChart(document.getElementById("law"), JSON.parse(document.getElementById("scaling").textContent));
document.documentElement.dataset.height = String(document.documentElement.scrollHeight);
