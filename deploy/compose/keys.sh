#!/bin/sh
# What nobody shall find in a repository, made at the first start and kept in the volumes of compose.yaml: the nodes'
# secret, the publisher's API key, a certificate for localhost, Grafana's password. In the gateway's image:
#
#     sh keys.sh NODES BALANCER GRAFANA SETTINGS      (three folders, and the nodes' gateway.toml)
set -eu
nodes=$1 balancer=$2 grafana=$3 settings=$4
# Each volume is seen by those who need it alone, and they are not of one user: in it, all may read.
umask 022

# once FILE COMMAND...: what the command prints, whole or not at all, unless it is there.
once() {
    [ -s "$1" ] && return
    file=$1
    shift
    "$@" >"$file.new"
    mv "$file.new" "$file"
}

once "$nodes/jwt.key" openssl rand -base64 48
once "$grafana/password" openssl rand -hex 16

if [ ! -s "$nodes/api_key.toml" ]; then
    gateway apikey traffic --publish '**' --admin >"$nodes/api_key.new" 2>"$nodes/traffic.key"
    mv "$nodes/api_key.new" "$nodes/api_key.toml"
fi
# Anew at each start: the file may have been edited.
cat "$settings" "$nodes/api_key.toml" >"$nodes/gateway.toml"

if [ ! -s "$balancer/site.pem" ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
        -keyout "$balancer/key.new" -out "$balancer/certificate.new"
    chmod 644 "$balancer/key.new"
    cat "$balancer/certificate.new" "$balancer/key.new" >"$balancer/site.new"
    mv "$balancer/site.new" "$balancer/site.pem"
    rm "$balancer/key.new" "$balancer/certificate.new"
fi
