package endpoint

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
)

// Paths of the agent's API on Socket.
const (
	EnrolPath  = "/v1/endpoints"
	StatusPath = "/v1/status"
)

// EnrolRequest asks the agent to judge the pod of an endpoint whose record is on disk, and whose addresses are in the
// set of all pods.
type EnrolRequest struct {
	ID string `json:"id"`
}

// Verdict is the answer: under which policies the pod is now, or why it isn't.
type Verdict struct {
	Ingress string `json:"ingress,omitempty"`
	Egress  string `json:"egress,omitempty"`
	Error   string `json:"error,omitempty"`
}

// ErrNoAgent says that nobody answers on the socket.
var ErrNoAgent = errors.New("no agent answers on " + Socket)

// Client speaks to the agent.
func Client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", Socket)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", ErrNoAgent, err)
			}
			return conn, nil
		},
	}}
}

// Enrol asks the agent to put the endpoint's addresses into every set they belong in, and returns once the kernel
// enforces the policies on them.
func Enrol(ctx context.Context, id string) (Verdict, error) {
	var v Verdict
	body, err := json.Marshal(EnrolRequest{ID: id})
	if err != nil {
		return v, fmt.Errorf("enrol %s: %w", id, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent"+EnrolPath, bytes.NewReader(body))
	if err != nil {
		return v, fmt.Errorf("enrol %s: %w", id, err)
	}
	resp, err := Client().Do(req)
	if err != nil {
		return v, fmt.Errorf("enrol %s: %w", id, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		return v, fmt.Errorf("enrol %s: the agent's answer (%s): %w", id, resp.Status, err)
	}
	if resp.StatusCode != http.StatusOK {
		return v, fmt.Errorf("enrol %s: %s", id, v.Error)
	}
	return v, nil
}

// CheckID refuses what is no ID, so that no request can name a file elsewhere.
func CheckID(id string) error {
	container, ifName, ok := strings.Cut(id, ":")
	if !ok || container == "" || ifName == "" || strings.ContainsAny(id, "/\\\x00") || strings.Contains(ifName, ":") || strings.HasPrefix(id, ".") {
		return fmt.Errorf("%q is no endpoint ID (CONTAINER:INTERFACE)", id)
	}
	return nil
}

// IDOfFile is the ID of the endpoint whose record has that file name.
func IDOfFile(name string) (id string, ok bool) {
	id, ok = strings.CutSuffix(name, suffix)
	return id, ok && CheckID(id) == nil
}
