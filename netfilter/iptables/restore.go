package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/excerpt"
)

// restorer is a process of iptables-restore that waits for commands. It is started in advance, because the start takes
// longer than the change of rules. A waiting process doesn't lock the tables.
//
// Equivalent to: iptables-restore --wait 10 --noflush (ip6tables-restore for IPv6)
type restorer struct {
	flavour Flavour
	family  conf.Family
	cmd     *exec.Cmd
	stdin   *os.File // a pipe with a small buffer
	output  output
	ended   chan struct{} // closed when the process has ended
	err     error         // the error with which the process has ended; valid when ended is closed
}

func startRestorer(f Flavour, family conf.Family, lockWait string) (*restorer, error) {
	// The process outlives this call, so it doesn't end with the caller's context. The method change limits its time.
	cmd := exec.CommandContext(context.Background(), f.program(family)+"-restore", "--wait", lockWait, "--noflush")
	r := &restorer{flavour: f, family: family, cmd: cmd, ended: make(chan struct{})}
	r.cmd.Stderr = &r.output
	// If the agent is killed, a process that waits for the lock must not make its change later: by then, the next agent
	// may have given a number to another class. So the kernel kills the process when the thread that started the process
	// ends. This thread usually ends with the agent.
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", r.cmd.Path, err)
	}
	go func() {
		defer close(r.ended)
		r.err = r.cmd.Wait()
	}()
	return r, nil
}

func (r *restorer) start() (err error) {
	var stdin *os.File
	if stdin, r.stdin, err = os.Pipe(); err != nil {
		return err
	}
	defer func() { _ = stdin.Close() }()
	r.cmd.Stdin = stdin
	if err = shrink(r.stdin); err == nil {
		err = r.cmd.Start()
	}
	if err != nil {
		_ = r.stdin.Close()
	}
	return err
}

// shrink limits the pipe's buffer to one page. After the commands, the method change sends so many comments that they
// fill this buffer. A small buffer needs fewer comments.
func shrink(pipe *os.File) error {
	conn, err := pipe.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(conn.Control(func(fd uintptr) {
		_, err = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, os.Getpagesize())
	}), err)
}

// readsItself reports whether the process is iptables-nft's own program. A script of the same name may read the
// commands first, and pass them to that program later. So commands that a script has read may not have been carried
// out.
func (r *restorer) readsItself() bool {
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", r.cmd.Process.Pid))
	return err == nil && filepath.Base(program) == "xtables-nft-multi"
}

// comments returns lines that iptables-restore ignores (see change). Together, these lines are longer than the buffers
// of the pipe, of the C library and of the program. iptables-restore 1.8.4 reads 64 KiB and one more line before it
// carries out the first command.
func comments() []byte {
	const line, buffer = 1 << 10, 1 << 16
	return bytes.Repeat([]byte("#"+strings.Repeat(" ", line-2)+"\n"), (2*os.Getpagesize()+buffer)/line+2)
}

func (r *restorer) runs() bool {
	select {
	case <-r.ended:
		return false
	default:
		return true
	}
}

// carryOut makes the process carry out the commands, and waits for the process to end. If ctx ends, or after 30
// seconds, it kills the process.
func (r *restorer) carryOut(ctx context.Context, commands string) error {
	err := r.change(ctx, commands)
	r.dismiss()
	return err
}

// change makes the process carry out the commands. With iptables-nft's own program, it returns as soon as the kernel
// has the change, and the program then waits for release. The program's end takes tens of milliseconds more, because
// the kernel frees the deleted rules when the program closes its socket. With any other program, change waits for the
// process to end.
//
// After the commands, change sends comments. A program that has read the comments has carried out the commands.
func (r *restorer) change(ctx context.Context, commands string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = r.cmd.Process.Kill() })
	defer stop()
	_, err := io.WriteString(r.stdin, commands)
	if err == nil && r.flavour == NFT {
		if _, ended := r.stdin.Write(comments()); ended == nil && r.readsItself() {
			return nil
		}
	}
	if closeErr := r.stdin.Close(); err == nil {
		err = closeErr
	}
	<-r.ended
	if r.err != nil { // the exit status says more than the error of writing
		err = r.err
	}
	if err != nil {
		said := r.output.String()
		return &restoreError{r.family, strings.Join(r.cmd.Args, " "), err, said, offending(said, commands)}
	}
	return nil
}

type restoreError struct {
	family    conf.Family
	program   string
	err       error
	said      string // the program's output
	offending string // an excerpt of the failed line of the commands
}

func (e *restoreError) Error() string {
	cause := e.offending
	if strings.Contains(e.said, "xtables lock") {
		cause = errLocked.Error() + "; end that program if it hangs: "
	}
	return fmt.Sprintf("%s: %v: %s%s", e.program, e.err, cause, e.said)
}

func (e *restoreError) Unwrap() error { return e.err }

// output keeps only the beginning of a program's output. The whole output may have a line for each of 10,000 rules.
type output struct{ kept bytes.Buffer }

const maxOutput = 4 << 10

// Write always reports that it has written all of p. If it reported less, package os/exec would stop reading the
// program's output.
func (o *output) Write(p []byte) (int, error) {
	o.kept.Write(p[:min(len(p), maxOutput-o.kept.Len())])
	return len(p), nil
}

func (o *output) String() string { return excerpt.Of(strings.TrimSpace(o.kept.String())) }

// lineNumber finds a line number in a message of iptables-restore, such as "line 2 failed", "Error occurred at line: 2"
// or "line 2: RULE_APPEND failed". The number counts the lines of the commands that iptables-restore has read.
var lineNumber = regexp.MustCompile(`\bline:? (\d+)`)

// offending returns an excerpt of the failed line of the commands. The program's output (said) has the number of this
// line. If there is no such number or no such line, offending returns "".
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

// release lets the process end, but doesn't wait for its end.
func (r *restorer) release() { _ = r.stdin.Close() }

// release lets the processes in d.spent end. The caller calls it only after the changes of all families, because the
// kernel delays other changes of nf_tables while such a process ends.
func (d *Driver) release() {
	for _, r := range d.spent {
		r.release()
	}
	d.released, d.spent = append(d.released, d.spent...), nil
}

// heedLate looks for released processes that have failed. It keeps their errors for Apply, and makes the kernel's state
// unknown, because their changes may be incomplete.
func (d *Driver) heedLate() {
	var running []*restorer
	for _, r := range d.released {
		switch {
		case r.runs():
			running = append(running, r)
		case r.err != nil:
			d.late = append(d.late, &restoreError{r.family, strings.Join(r.cmd.Args, " "), r.err, r.output.String(), ""})
			d.have, d.settled, d.refresh = nil, nil, nil
		}
	}
	d.released = running
}

func (r *restorer) dismiss() {
	if r != nil {
		r.release()
		<-r.ended
	}
}
