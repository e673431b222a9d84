package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/endpoint"
)

// keepPlaces checks at each resync that the agent's lock and socket are in their places, because another program may
// have emptied /run/weir. It makes a missing file again. If that fails, or if another agent has the lock, it returns an
// error, and the agent ends. While it is unknown whether a file is in its place, the agent goes on and tries again.
func (a *agent) keepPlaces(ctx context.Context, lock *OwnLock, socket *socket) error {
	resync := time.NewTicker(a.Resync)
	defer resync.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-resync.C:
		}
		// The lock comes first: if another agent has the lock, the socket belongs to the other agent.
		for _, keep := range []func(context.Context) (made string, err error){lock.keep, socket.keep} {
			made, err := keep(ctx)
			if errors.Is(err, errUnseen) {
				a.Log.Warn("can't look for a file of the agent; the agent tries again at the next resync", "error", err)
				break
			}
			if err != nil {
				return err
			}
			if made != "" {
				a.Log.Warn("another program removed a file of the agent; the agent has made it again", "file", made)
			}
		}
	}
}

// errUnseen means that the agent could not find out whether the file of its lock or socket still exists.
var errUnseen = errors.New("look for a file of the agent")

const lockFile = endpoint.Dir + "/agent.lock"

// lockWait limits the wait for the agent's lock. A killed agent's threads and children may have the lock a
// moment longer.
const lockWait = 2 * time.Second

// OwnLock is the agent's lock while this process has it.
type OwnLock struct{ file *os.File }

func (l *OwnLock) Close() error { return l.file.Close() }

// Lock takes the agent's lock, so that only one agent runs. It returns an error if another process has the lock for
// two seconds. The kernel releases the lock when the process ends.
//
// Equivalent to: flock --timeout 2 /run/weir/agent.lock COMMAND
func Lock() (*OwnLock, error) {
	if err := os.MkdirAll(endpoint.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make %s: %w", endpoint.Dir, err)
	}
	for end := time.Now().Add(lockWait); ; time.Sleep(10 * time.Millisecond) { // the system call flock has no timeout
		lock, err := os.OpenFile(lockFile, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open the agent's lock: %w", err)
		}
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		inPlace, unseen := endpoint.InPlace(lock)
		if err == nil && unseen == nil && inPlace {
			return &OwnLock{lock}, nil
		}
		_ = lock.Close()
		if unseen != nil {
			return nil, fmt.Errorf("%w: %w", errUnseen, unseen)
		}
		if err != nil && (!errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end)) {
			return nil, fmt.Errorf("another weir-agent runs on this node (it has locked %s): %w", lockFile, err)
		}
	}
}

// keep takes the lock again if the lock's file isn't in its place any more: otherwise a second agent could run. It
// returns the path of a file that it has made.
func (l *OwnLock) keep(context.Context) (made string, err error) {
	inPlace, err := endpoint.InPlace(l.file)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errUnseen, err)
	}
	if inPlace {
		return "", nil
	}
	again, err := Lock()
	if err != nil {
		return "", err
	}
	_ = l.file.Close()
	l.file = again.file
	return lockFile, nil
}

// socket listens on the agent's socket. If the file is removed, keep makes it again.
type socket struct {
	mu       sync.Mutex
	listener net.Listener
	file     fs.FileInfo
	closed   bool
}

// listenSocket listens on the agent's socket. It replaces the socket of the last agent.
//
// Equivalent to: socat UNIX-LISTEN:/run/weir/agent.sock,unlink-early,mode=600 -
func listenSocket(ctx context.Context) (*socket, error) {
	s := &socket{}
	return s, s.listen(ctx)
}

func (s *socket) listen(ctx context.Context) error {
	if err := os.Remove(agentapi.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the last agent's socket: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", agentapi.Socket)
	if err != nil {
		return fmt.Errorf("listen for the plugin: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // at the time of Close, the file may belong to another agent
	if err = os.Chmod(agentapi.Socket, 0o600); err == nil {
		s.file, err = os.Lstat(agentapi.Socket)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("protect the agent's socket: %w", err), l.Close())
	}
	s.listener = l
	return nil
}

func (s *socket) inPlace() (bool, error) {
	there, err := os.Lstat(agentapi.Socket)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(s.file, there), err
}

// keep listens on a new socket if the socket's file isn't in its place any more. It returns the path of a file that it
// has made.
func (s *socket) keep(ctx context.Context) (made string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return "", nil
	}
	inPlace, err := s.inPlace()
	if err != nil {
		return "", fmt.Errorf("%w: %w", errUnseen, err)
	}
	if inPlace {
		return "", nil
	}
	before := s.listener
	if err := s.listen(ctx); err != nil {
		return "", err
	}
	_ = before.Close()
	return agentapi.Socket, nil
}

func (s *socket) current() net.Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listener
}

// Accept waits for a connection. It goes on waiting if keep replaces the listener meanwhile.
func (s *socket) Accept() (net.Conn, error) {
	for {
		l := s.current()
		conn, err := l.Accept()
		if err == nil || s.current() == l {
			return conn, err
		}
	}
}

// Close ends Accept, and removes the socket's file. It doesn't remove a file that another agent has made in its place.
func (s *socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if inPlace, _ := s.inPlace(); inPlace && !s.closed {
		_ = os.Remove(agentapi.Socket)
	}
	s.closed = true
	return s.listener.Close()
}

func (s *socket) Addr() net.Addr { return s.current().Addr() }
