package agent

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/agent/drops"
	"github.com/weir-net/weir/internal/excerpt"
)

// maxDropFile limits a file's size, in bytes. Before a file would exceed the limit, it is renamed to FILE.1, and a new
// file begins.
const maxDropFile = 16 << 20

type dropFile struct {
	path   string // empty if no file is written
	most   int64
	file   *os.File
	size   int64
	failed bool
}

// write appends the drops to the file. Of several errors in a row, it logs only the first.
func (f *dropFile) write(entries []drops.Entry, log *slog.Logger) {
	if f.path == "" {
		return
	}
	err := f.append(entries)
	if err != nil && !f.failed {
		log.Warn("drops can't be written to a file", "file", f.path, "error", err)
	}
	f.failed = err != nil
}

func (f *dropFile) append(entries []drops.Entry) error {
	var lines bytes.Buffer
	for _, e := range entries {
		d := *e.Drop
		d.Packet = nil
		if err := excerpt.WriteJSON(&lines, "", &d); err != nil {
			return err
		}
	}
	if f.file == nil {
		if err := f.open(); err != nil {
			return err
		}
	}
	if f.size > 0 && f.size+int64(lines.Len()) > f.most {
		f.close()
		if err := os.Rename(f.path, f.path+".1"); err != nil {
			return err
		}
		if err := f.open(); err != nil {
			return err
		}
	}
	n, err := f.file.Write(lines.Bytes())
	if err != nil {
		if n > 0 { // remove the incomplete line; the next line would begin behind it and be unreadable
			err = errors.Join(err, f.file.Truncate(f.size))
		}
		f.close() // the next attempt opens the file again
		return err
	}
	f.size += int64(n)
	return nil
}

func (f *dropFile) open() error {
	file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", f.path)
	}
	if err != nil {
		_ = file.Close()
		return err
	}
	f.file, f.size = file, info.Size()
	return nil
}

func (f *dropFile) close() {
	if f.file != nil {
		_ = f.file.Close()
		f.file = nil
	}
}
