package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// defaultParallel is how many nodes are asked at the same time. weirctl asks a node by an exec in the agent's pod,
// which costs the API server, kubelet and the runtime some milliseconds.
const defaultParallel = 32

// Answer is the answer of one node's agent, or the reason why there is none.
type Answer[T any] struct {
	Agent
	Value T
	Err   error
}

// AskAll calls the function ask for all agents, o.Parallel of them at a time. It passes the answers to the function
// each, one at a time. If an agent doesn't answer, its Answer has the reason. If the API server forbids the user to
// ask, AskAll ends, and returns a forbiddenError.
func AskAll[T any](
	ctx context.Context, agents []Agent, o AskOptions, ask func(context.Context, Agent) (T, error), each func(Answer[T]),
) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	waiting := make(chan Agent)
	answers := make(chan Answer[T])
	var asking sync.WaitGroup
	for range min(max(o.Parallel, 1), len(agents)) {
		asking.Go(func() {
			for of := range waiting {
				one, cancel := context.WithTimeoutCause(ctx, o.Within, errNoAnswer(o.Within))
				value, err := ask(one, of)
				cancel()
				answers <- Answer[T]{of, value, err}
			}
		})
	}
	go func() {
		defer close(waiting)
		for _, of := range agents {
			select {
			case waiting <- of:
			case <-ctx.Done():
				return
			}
		}
	}()
	go func() {
		asking.Wait()
		close(answers)
	}()
	for a := range answers {
		if ctx.Err() != nil {
			continue
		}
		if errors.As(a.Err, new(*forbiddenError)) {
			stop(a.Err)
			continue
		}
		each(a)
	}
	return context.Cause(ctx)
}

type AskOptions struct {
	Parallel int
	// Within is the longest time to wait for one agent's answer.
	Within time.Duration
}

func errNoAnswer(within time.Duration) error { return fmt.Errorf("no answer within %s", within) }

// Progress is a line on a terminal that says how far a command is.
type Progress struct {
	out    io.Writer // nil if nothing is printed
	last   time.Time
	length int
}

const progressEvery = 100 * time.Millisecond

// NewProgress returns a Progress on f. If f isn't a terminal, the Progress prints nothing.
func NewProgress(f *os.File) *Progress {
	if !term.IsTerminal(int(f.Fd())) || os.Getenv("TERM") == "dumb" {
		return &Progress{}
	}
	return &Progress{out: f}
}

// Say replaces the line. It does nothing if the line was changed less than progressEvery ago.
func (p *Progress) Say(format string, args ...any) {
	if p == nil || p.out == nil || time.Since(p.last) < progressEvery {
		return
	}
	p.Clear()
	line := fmt.Sprintf(format, args...)
	p.last, p.length = time.Now(), len(line)
	_, _ = fmt.Fprint(p.out, line)
}

// Clear removes the line from the terminal. Call it before printing anything else. p may be nil.
func (p *Progress) Clear() {
	if p != nil && p.length > 0 {
		_, _ = fmt.Fprintf(p.out, "\r%*s\r", p.length, "")
		p.length = 0
	}
}
