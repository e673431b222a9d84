package kernel

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/weir-net/weir/conf"
)

// restorer is an iptables-restore that has been started and waits for its commands. It reads nothing of the kernel and takes
// no lock before the first of them comes, and does nothing if none does. Starting the program is most of what a change of
// rules costs, so the next one's is started ahead.
//
// Equivalent to: iptables-restore --wait 10 --noflush (ip6tables-restore for IPv6)
type restorer struct {
	flavour Flavour
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	output  bytes.Buffer
	ended   chan struct{} // closed when it has
	err     error         // with which it has
}

func startRestorer(f Flavour, family conf.Family) (*restorer, error) {
	// It outlives what it is started in; carryOut bounds what it does.
	cmd := exec.CommandContext(context.Background(), f.program(family)+"-restore", "--wait", lockWait, "--noflush")
	r := &restorer{flavour: f, cmd: cmd, ended: make(chan struct{})}
	r.cmd.Stderr = &r.output
	var err error
	if r.stdin, err = r.cmd.StdinPipe(); err == nil {
		err = r.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", r.cmd.Path, err)
	}
	go func() {
		defer close(r.ended)
		r.err = r.cmd.Wait()
	}()
	return r, nil
}

// waits says whether the program is still there, and is that flavour's.
func (r *restorer) waits(f Flavour) bool {
	if r == nil || r.flavour != f {
		return false
	}
	select {
	case <-r.ended:
		return false
	default:
		return true
	}
}

// carryOut has it carry out the commands, in one transaction for each table, and end.
func (r *restorer) carryOut(ctx context.Context, commands string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = r.cmd.Process.Kill() })
	defer stop()
	_, err := io.WriteString(r.stdin, commands)
	if closeErr := r.stdin.Close(); err == nil {
		err = closeErr
	}
	<-r.ended
	if r.err != nil { // which says more than that it read no further
		err = r.err
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s\n%s", strings.Join(r.cmd.Args, " "), err, strings.TrimSpace(r.output.String()), commands)
	}
	return nil
}

// dismiss ends it without commands.
func (r *restorer) dismiss() {
	if r != nil {
		_ = r.stdin.Close()
		<-r.ended
	}
}
