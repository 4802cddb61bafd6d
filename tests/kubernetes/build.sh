#!/bin/sh
# Builds etcd and the API server of Kubernetes, which tests/kubernetes/run.py needs, into the folder $1. It needs Go 1.26 and
# 3 GiB of memory, and takes about seven minutes on two cores.
set -eu
mkdir -p "$1"
out=$(cd "$1" && pwd)
version=37.2
staging="api apiextensions-apiserver apimachinery apiserver cli-runtime client-go cloud-provider cluster-bootstrap
    code-generator component-base component-helpers controller-manager cri-api cri-client cri-streaming
    csi-translation-lib dynamic-resource-allocation endpointslice externaljwt kms kube-aggregator
    kube-controller-manager kube-proxy kube-scheduler kubectl kubelet metrics mount-utils pod-security-admission
    sample-apiserver sample-cli-plugin sample-controller streaming"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/etcd" "$folder/kubernetes"

cd "$folder/etcd"
go mod init example.test/etcd
go get -tool go.etcd.io/etcd/server/v3@v3.7.3
go build -trimpath -ldflags='-s -w' -o "$out/etcd" go.etcd.io/etcd/server/v3

cd "$folder/kubernetes"
go mod init example.test/kubernetes
go mod edit -require "k8s.io/kubernetes@v1.$version"
for module in $staging; do
    go mod edit -replace "k8s.io/$module=k8s.io/$module@v0.$version"
done
go get -tool k8s.io/kubernetes/cmd/kube-apiserver
go build -trimpath -ldflags='-s -w' -o "$out/" k8s.io/kubernetes/cmd/kube-apiserver
