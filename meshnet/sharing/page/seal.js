// Takes from the page what its rule does not govern in every browser: connections between browsers (WebRTC).
"use strict";

for (const name of ["RTCPeerConnection", "webkitRTCPeerConnection", "mozRTCPeerConnection"]) delete globalThis[name];
