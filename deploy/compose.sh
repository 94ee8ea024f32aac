#!/bin/sh
# What `make up`, `make down` and `make image-size` do: deploy/compose.sh up | down | size. Needs Docker and nothing else.
#
#   COMPOSE    the command to use: "docker compose" where there is one, else docker-compose
#   UP_WAIT_S  how long `up` waits for everything to be healthy, after the start; 300 seconds
#   UP_BUILD   "no": `up` takes the image as it is; else it is built from what is here, which takes seconds if nothing changed
#   SCALE      for `up`, as in SCALE="consumer=3"
set -eu
cd "$(dirname "$0")/.."

if [ -z "${COMPOSE:-}" ]; then
  if docker compose version >/dev/null 2>&1; then COMPOSE="docker compose"; else COMPOSE=docker-compose; fi
fi
compose() { $COMPOSE "$@"; }

fail() { echo "$*" >&2; exit 1; }

setting() { # NAME: the environment's, else that of .env
  eval "value=\${$1:-}"
  [ -n "$value" ] || value=$(sed -n "s/^$1=//p" .env)
  echo "$value"
}

unhealthy() { # "service: state" of every container that is not well yet
  for id in $(compose ps -q); do
    docker inspect --format \
      '{{index .Config.Labels "com.docker.compose.service"}} {{.State.Status}} {{.State.ExitCode}} {{with .State.Health}}{{.Status}}{{end}}' \
      "$id" 2>/dev/null
  done | while read -r service status code health; do
    case "$status/$code/$health" in
      running/*/healthy | exited/0/*) ;;
      *) echo "$service: ${health:-$status}" ;;
    esac
  done
}

wait_until_healthy() {
  deadline=$(($(date +%s) + ${UP_WAIT_S:-300}))
  said=
  while waiting=$(unhealthy | sort -u) && [ -n "$waiting" ]; do
    if [ "$(date +%s)" -gt "$deadline" ]; then
      echo "$waiting" | while IFS=: read -r service _; do compose logs --tail 20 "$service" >&2; done
      fail "not healthy after ${UP_WAIT_S:-300} s: $(echo "$waiting" | tr '\n' ' ')"
    fi
    [ "$waiting" = "$said" ] || echo "waiting for $(echo "$waiting" | tr '\n' ' ')"
    said=$waiting
    sleep 2
  done
}

address() { # LABEL SERVICE PORT [SCHEME] [NOTE]
  bound=$(compose port "$2" "$3" 2>/dev/null) || return 0
  [ -n "$bound" ] && [ "$bound" != ":0" ] || return 0
  bound=$(echo "$bound" | head -n 1 | sed 's/^0\.0\.0\.0:/127.0.0.1:/')
  printf '  %-14s %s\n' "$1" "${4:-}$bound${5:-}"
}

up() {
  hidden=$(find deploy/prometheus deploy/grafana ! -perm -004 | head -n 1)
  [ -z "$hidden" ] || fail "Prometheus and Grafana may not read $hidden: chmod -R o+rX deploy/prometheus deploy/grafana"
  # shellcheck disable=SC2046 - several scales are several words
  compose up --detach $([ "${UP_BUILD:-}" = no ] || echo --build) $(for scale in ${SCALE:-}; do echo "--scale $scale"; done)
  wait_until_healthy
  echo "Driftwood is up:"
  address "console, API" recommender 8080 http:// "   (calls: /docs)"
  address Kafka kafka 9094 "" "          (make replay DATA=log KAFKA_BOOTSTRAP_SERVERS=this)"
  address Prometheus prometheus 9090 http://
  address Grafana grafana 3000 http://
}

size() {
  image=$(setting DRIFTWOOD_IMAGE)
  base=$(setting PYTHON_IMAGE)
  bytes=$(docker image inspect --format '{{.Size}}' "$image") || fail "no image $image yet: $COMPOSE build"
  # BuildKit keeps no image of the base, unless somebody pulled it.
  under=$(docker image inspect --format '{{.Size}}' "$base" 2>/dev/null || true)
  echo "$image: $((bytes / 1000000)) MB${under:+, of these $((under / 1000000)) MB from $base}"
}

case "${1:-}" in
  up) up ;;
  down) compose --profile demo --profile observability down ;;
  size) size ;;
  *) fail "say up, down or size" ;;
esac
