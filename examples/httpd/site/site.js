// Shows that the page, and the server behind it, are alive.
const line = document.getElementById("now");
fetch("/healthz").then((answer) => {
  line.textContent = `/healthz said ${answer.status} at ${new Date().toLocaleTimeString()}.`;
  line.hidden = false;
});
