#!/bin/bash
# Whether the container is well: health.sh [PORT]. Where Ray's agent listens (a node that `ray start` started) it must
# answer as KubeRay's probes ask it; where none does (a single command), the command must at least start.
# Kubernetes does not look at an image's HEALTHCHECK: KubeRay sets probes of its own.
port=${1:-52365}
if (exec 3<>"/dev/tcp/localhost/$port") 2>/dev/null; then
	wget --tries 1 -T 10 -q -O- "http://localhost:$port/api/healthz" | grep success
else
	regrow recipes >/dev/null
fi
