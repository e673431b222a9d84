package iptables

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/excerpt"
)

// restorer is an iptables-restore that has been started and waits for its commands. It reads nothing of the kernel
// and takes no lock before the first of them comes, and does nothing if none does. Starting the program is most of
// what a change of rules costs, so the next one's is started ahead.
//
// Equivalent to: iptables-restore --wait 10 --noflush (ip6tables-restore for IPv6)
type restorer struct {
	flavour Flavour
	family  conf.Family
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	output  output
	ended   chan struct{} // closed when it has
	err     error         // with which it has
}

func startRestorer(f Flavour, family conf.Family) (*restorer, error) {
	// It outlives what it is started in; carryOut bounds what it does.
	cmd := exec.CommandContext(context.Background(), f.program(family)+"-restore", "--wait", lockWait, "--noflush")
	r := &restorer{flavour: f, family: family, cmd: cmd, ended: make(chan struct{})}
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
		said := r.output.String()
		return &restoreError{r.family, strings.Join(r.cmd.Args, " "), err, said, offending(said, commands)}
	}
	return nil
}

// restoreError says that the program has failed.
type restoreError struct {
	family    conf.Family
	program   string
	err       error
	said      string // by the program
	offending string // line of the commands
}

func (e *restoreError) Error() string {
	return fmt.Sprintf("%s: %v: %s%s", e.program, e.err, e.offending, e.said)
}

func (e *restoreError) Unwrap() error { return e.err }

// output is the beginning of what a program says: one that refuses 10,000 rules may say so of each.
type output struct{ kept bytes.Buffer }

// maxOutput is how many bytes are kept.
const maxOutput = 4 << 10

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.kept.Write(p[:min(len(p), maxOutput-o.kept.Len())])
	return len(p), nil
}

func (o *output) String() string { return excerpt.Of(strings.TrimSpace(o.kept.String())) }

// lineNumber is how iptables-restore says which of its lines is wrong: "line 2 failed", "Error occurred at line: 2", or
// "line 2: RULE_APPEND failed". The legacy one names the line with COMMIT where the kernel refuses the table.
var lineNumber = regexp.MustCompile(`\bline:? (\d+)`)

// offending is the line of the commands that the program's output speaks of: all of them may be megabytes.
func offending(said, commands string) string {
	m := lineNumber.FindStringSubmatch(said)
	if m == nil {
		return ""
	}
	wanted, err := strconv.Atoi(m[1])
	if err != nil {
		return ""
	}
	n := 0
	for line := range strings.Lines(commands) {
		if n++; n == wanted {
			return fmt.Sprintf("line %d is: %s: ", n, excerpt.Of(strings.TrimSpace(line)))
		}
	}
	return ""
}

// dismiss ends it without commands.
func (r *restorer) dismiss() {
	if r != nil {
		_ = r.stdin.Close()
		<-r.ended
	}
}
