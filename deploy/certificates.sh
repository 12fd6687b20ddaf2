#!/usr/bin/env bash
# Makes a federation's own certificate authority and the SuperLink's certificate.
#
#   certificates.sh FOLDER NAME_OR_ADDRESS...
#
# FOLDER gets ca.key (keep it offline), ca.crt (for every node), server.key and server.crt (for the
# SuperLink). The certificate is for every name and address given, for localhost and for 127.0.0.1.
# An existing CA is used again, so that a new server certificate needs no change at the nodes.
set -euo pipefail

if (( $# < 2 )); then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
folder=$1
shift
umask 077
mkdir -p "$folder"
cd "$folder"

names="DNS:localhost,IP:127.0.0.1"
for name in "$@"; do
    if [[ $name =~ ^[0-9.]+$ || $name == *:* ]]; then
        names+=",IP:$name"
    else
        names+=",DNS:$name"
    fi
done

if [[ -e ca.crt && ! -e ca.key ]]; then
    echo "$folder: ca.crt exists but ca.key is missing: bring it back to sign with the same CA" >&2
    exit 2
fi
if [[ ! -e ca.key ]]; then
    openssl ecparam -name secp384r1 -genkey -noout -out ca.key
    openssl req -x509 -new -key ca.key -sha256 -days 3650 -out ca.crt \
        -subj "/O=Dandelion/CN=Dandelion federation CA" \
        -addext "basicConstraints=critical,CA:TRUE,pathlen:0" \
        -addext "keyUsage=critical,keyCertSign,cRLSign"
fi

openssl ecparam -name secp384r1 -genkey -noout -out server.key
openssl req -new -key server.key -sha256 -subj "/O=Dandelion/CN=$1" -out server.csr
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -sha256 -days 825 \
    -out server.crt -extfile <(printf '%s\n' \
        "subjectAltName=$names" \
        "basicConstraints=critical,CA:FALSE" \
        "keyUsage=critical,digitalSignature" \
        "extendedKeyUsage=serverAuth") 2>/dev/null
rm -f server.csr
chmod 644 ca.crt server.crt
echo "$folder: ca.crt and server.crt for $names"
