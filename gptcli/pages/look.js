// The page of `gptcli look --html`: all attention maps of one text.

const shown = JSON.parse(document.getElementById("look").textContent);
const mapsRoot = document.getElementById("maps");
if (shown.heads.length) attentionMaps(mapsRoot, shown.labels).show(shown.heads);
document.documentElement.dataset.height = String(document.documentElement.scrollHeight);
