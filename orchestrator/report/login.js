"use strict";
// Sends the token once; the server answers with a cookie. A wall screen may be opened with the token behind a #, which
// browsers do not send and which is taken out of the address here.

async function send(token) {
  const answer = await fetch("/login", {
    method: "POST", headers: { "Content-Type": "application/x-www-form-urlencoded" }, body: new URLSearchParams({ token }),
  });
  if (answer.ok) location.reload();
  else document.getElementById("answer").textContent = (await answer.json()).error;
}

document.getElementById("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send(document.getElementById("token").value);
});

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  history.replaceState(null, "", location.pathname);
  send(given);
}
