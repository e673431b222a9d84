// Package agentapi is the interface between the plugin, the agent and weirctl: requests over the agent's socket, their
// answers, and the heartbeat file. The plugin links the package, so the package must stay small.
//
// Invariants:
//   - A pod counts as enrolled only if the agent has answered with the status 200.
//   - No caller waits longer for an answer than the context of the request allows.
//   - A heartbeat that can't be read is an error: it doesn't count as a missing heartbeat.
//   - The package changes no file but the heartbeat, and no part of the kernel.
package agentapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/weir-net/weir/endpoint"
)

// Socket is the Unix socket (mode 0600) on which the agent answers HTTP requests of the plugin and weirctl.
const Socket = endpoint.Dir + "/agent.sock"

const (
	EnrolPath  = "/v1/endpoints"
	StatusPath = "/v1/status"
	// ObjectsPath answers with the objects that the agent knows. ExplainPath answers what happens to a connection.
	ObjectsPath = "/v1/objects"
	ExplainPath = "/v1/explain"
	// EnforcedPath takes a Question of package policy/enforced, and answers with an Answer of the same package.
	EnforcedPath = "/v1/enforced"
)

// EnrolRequest asks the agent to enrol an endpoint. The endpoint's record must already be on disk.
type EnrolRequest struct {
	ID string `json:"id"`
}

// EnrolAnswer has the policies that isolate the pod in each direction, in the form of PodStatus. Or it says why the
// agent can't enrol the pod.
type EnrolAnswer struct {
	Ingress string `json:"ingress,omitempty"`
	Egress  string `json:"egress,omitempty"`
	Error   string `json:"error,omitempty"`
}

// ErrNoAgent means that no connection to the agent's socket is possible.
var ErrNoAgent = errors.New("no agent answers on " + Socket)

// ErrOutdated means that the agent refuses the attachment, because the attachment's network configuration contradicts
// the agent's configuration.
var ErrOutdated = errors.New("the configuration is out of date")

// maxAnswer limits an answer's size in bytes. Real answers have a few megabytes at most.
const maxAnswer = 64 << 20

// Question is a request that the agent hasn't answered yet.
type Question struct {
	what string
	ctx  context.Context
	conn net.Conn
}

// Ask sends the agent one request. If Ask can't connect, the error wraps ErrNoAgent. If ctx has ended, the error wraps
// the context's error instead.
//
// Equivalent to, with Answer: curl --unix-socket /run/weir/agent.sock -X METHOD -d BODY http://agent/PATH
//
// Ask writes HTTP/1.0 by hand, because net/http would nearly double the plugin's size.
func Ask(ctx context.Context, method, path string, body []byte) (*Question, error) {
	q := &Question{what: method + " " + path, ctx: ctx}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", Socket)
	switch {
	case err == nil:
		q.conn = conn
	case ctx.Err() != nil:
		return nil, q.failed(err)
	default:
		return nil, fmt.Errorf("%w: %w", ErrNoAgent, err)
	}
	// If the agent hangs, it reads nothing, and only the deadline ends Write.
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	head := fmt.Sprintf("%s HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", q.what, len(body))
	if _, err := conn.Write(append([]byte(head), body...)); err != nil {
		return nil, errors.Join(q.failed(err), conn.Close())
	}
	return q, nil
}

// Answer waits for the agent's answer, and closes the connection. Call Answer exactly once. It fails if the context of
// Ask ends before the answer comes.
func (q *Question) Answer() (status int, answer []byte, err error) {
	defer func() { _ = q.conn.Close() }()
	defer context.AfterFunc(q.ctx, func() { _ = q.conn.SetDeadline(time.Unix(1, 0)) })()
	answer, err = io.ReadAll(io.LimitReader(q.conn, maxAnswer))
	if err != nil {
		return 0, nil, q.failed(err)
	}
	header, answer, ok := bytes.Cut(answer, []byte("\r\n\r\n"))
	if _, err := fmt.Sscanf(string(header), "HTTP/%s %d", new(string), &status); !ok || err != nil {
		return 0, nil, fmt.Errorf("%s: the agent's answer is no HTTP: %.100q", q.what, header)
	}
	return status, answer, nil
}

func (q *Question) failed(err error) error {
	if q.ctx.Err() != nil {
		err = q.ctx.Err()
	}
	return fmt.Errorf("%s: %w", q.what, err)
}

// Enrol asks the agent to enrol the endpoint. The caller must call the returned function wait once: wait returns when
// the kernel enforces the pod's policies, or with an error. The error wraps ErrNoAgent if no agent answers, and
// ErrOutdated if the attachment's network configuration is out of date.
func Enrol(ctx context.Context, id string) (wait func() (EnrolAnswer, error)) {
	body, err := json.Marshal(EnrolRequest{ID: id})
	var question *Question
	if err == nil {
		question, err = Ask(ctx, "POST", EnrolPath, body)
	}
	return func() (v EnrolAnswer, _ error) {
		if err != nil {
			return v, fmt.Errorf("enrol %s: %w", id, err)
		}
		status, answer, err := question.Answer()
		if err != nil {
			return v, fmt.Errorf("enrol %s: %w", id, err)
		}
		if err := json.Unmarshal(answer, &v); err != nil {
			return v, fmt.Errorf("enrol %s: the agent's answer (%d): %w", id, status, err)
		}
		if status == 409 {
			return v, fmt.Errorf("enrol %s: %w: %s", id, ErrOutdated, v.Error)
		}
		if status != 200 {
			return v, fmt.Errorf("enrol %s: %s", id, v.Error)
		}
		return v, nil
	}
}
