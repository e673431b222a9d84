// Package kubeproxy asks the node's kube-proxy for its mode.
//
// Invariants:
//   - The question takes at most a second.
//   - The mode is empty if kube-proxy doesn't answer, answers with an error, or breaks its answer off.
package kubeproxy

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"
)

const answersWithin = time.Second

// Mode returns the mode of the node's kube-proxy, such as "nftables". It returns "" if kube-proxy doesn't answer.
//
// Equivalent to: curl http://127.0.0.1:10249/proxyMode
func Mode(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:10249/proxyMode", nil)
	if err != nil {
		return ""
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return ""
	}
	defer func() { _ = answer.Body.Close() }()
	mode, err := io.ReadAll(io.LimitReader(answer.Body, 20))
	if err != nil || answer.StatusCode != http.StatusOK {
		return ""
	}
	return strings.TrimSpace(string(mode))
}
