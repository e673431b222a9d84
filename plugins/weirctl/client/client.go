// Package client asks agents: this node's agent over the agent's socket, and other nodes' agents through the API
// server. It also reads objects from the API server or from files, and prints answers.
//
// Invariants:
//   - The package needs nothing of Linux, so it also builds for macOS and Windows.
//   - A node that was asked and doesn't answer is in the result, with the reason.
//   - Objects that the user may not read are named (Gaps). They never count as absent.
//   - JSON, YAML and the lines of a Printer have no characters that act on a terminal.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/weir-net/weir/agentapi"
)

// answersWithin is how long a request to this node's agent waits for the answer. Tests change it.
var answersWithin = 10 * time.Second

// Status asks this node's agent for its status. The error wraps agentapi.ErrNoAgent if there is no agent.
//
// Equivalent to: curl --unix-socket /run/weir/agent.sock http://agent/v1/status
func Status(ctx context.Context) (*agentapi.Status, error) {
	s := &agentapi.Status{}
	if err := Get(ctx, agentapi.StatusPath, s); err != nil {
		return nil, err
	}
	return s, nil
}

// Get asks this node's agent for the path, and decodes the answer. The error is one line.
func Get(ctx context.Context, path string, into any) error { return ask(ctx, "GET", path, nil, into) }

// Post sends the question as JSON to this node's agent, and decodes the answer. The error is one line.
func Post(ctx context.Context, path string, question, into any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	return ask(ctx, "POST", path, body, into)
}

func ask(ctx context.Context, method, path string, body []byte, into any) error {
	limited, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	failed := func(err error) error {
		if limited.Err() != nil && ctx.Err() == nil && !errors.Is(err, agentapi.ErrNoAgent) {
			return fmt.Errorf("the agent on this node has not answered within %s: its log may say why", answersWithin)
		}
		return fmt.Errorf("ask the agent: %w", err)
	}
	question, err := agentapi.Ask(limited, method, path, body)
	if err != nil {
		return failed(err)
	}
	status, answer, err := question.Answer()
	if err != nil {
		return failed(err)
	}
	if status != http.StatusOK {
		return refusal(status, answer)
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("read the agent's answer (%d): %w", status, err)
	}
	return nil
}

func refusal(status int, answer []byte) error {
	var refused struct {
		Error string `json:"error"`
	}
	_ = json.Unmarshal(answer, &refused) // an older agent's answer is no JSON
	return &answerError{status, refused.Error}
}
