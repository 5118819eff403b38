// Assemble the page.

followTheme();
followPrinting();
readPalette();
showTable();
showLayer();
bindControls();
listenToKeys();
document.documentElement.dataset.ready = "true";
performance.mark("ready");
