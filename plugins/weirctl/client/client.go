// Package client asks weir-agent over its socket and prints the answers. It needs no kernel interface of Linux, so it
// builds on every operating system on which Go has Unix sockets.
package client

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/weir-net/weir/agentapi"
)

// answersWithin bounds how long the client waits for an answer.
const answersWithin = 10 * time.Second

// Status asks the agent for its status. The error wraps agentapi.ErrNoAgent if it can't connect to the agent's socket.
//
// Equivalent to: curl --unix-socket /run/weir/agent.sock http://agent/v1/status
func Status(ctx context.Context) (*agentapi.Status, error) {
	s := &agentapi.Status{}
	if err := get(ctx, agentapi.StatusPath, s); err != nil {
		return nil, err
	}
	return s, nil
}

// get asks the agent for the path, and decodes the answer.
func get(ctx context.Context, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	question, err := agentapi.Ask(ctx, "GET", path, nil)
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	status, answer, err := question.Answer()
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("read the agent's answer (%d): %w", status, err)
	}
	return nil
}
