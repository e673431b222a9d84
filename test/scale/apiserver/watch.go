package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
)

// event is a change of an object. As in a real API server, its encoded frames are made once for all watches.
type event struct {
	version  uint64
	was, now Object // was is nil if the object is new; now is the last state if the object is deleted
	deleted  bool

	mu     sync.Mutex
	frames map[string][]byte // by kind of event and media type
}

type watch struct {
	selector selector
	format   format
	queue    chan *event
}

// tell encodes the event for each watch, and queues it. A real API server encodes events on another machine. So a
// measurement begins when tell returns, and doesn't include the encoding. If the queue of a watch is full, the watch
// ends. The caller must have the lock.
func (s *Server) tell(r *resource, e *event) {
	r.sent.Changes++
	r.log = append(r.log, e)
	if len(r.log) > 2*s.limits.log {
		r.forgot = r.log[s.limits.log-1].version
		r.log = append([]*event(nil), r.log[s.limits.log:]...)
	}
	for w := range r.watches {
		if kind, ok := e.kindFor(w.selector); ok {
			_, _ = e.frame(w.format, kind) // sendEvents returns the error
		}
		select {
		case w.queue <- e:
		default:
			close(w.queue)
			delete(r.watches, w)
		}
	}
}

func (e *event) kindFor(s selector) (apiwatch.EventType, bool) {
	was, is := e.was != nil && s.matches(e.was), !e.deleted && s.matches(e.now)
	switch {
	case was && is:
		return apiwatch.Modified, true
	case was:
		return apiwatch.Deleted, true
	case is:
		return apiwatch.Added, true
	}
	return "", false
}

func (e *event) frame(f format, kind apiwatch.EventType) ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	key := string(kind) + " " + f.info.MediaType
	if e.frames[key] == nil {
		frame, err := f.frame(kind, e.now)
		if err != nil {
			return nil, err
		}
		if e.frames == nil {
			e.frames = map[string][]byte{}
		}
		e.frames[key] = frame
	}
	return e.frames[key], nil
}

func (f format) frame(kind apiwatch.EventType, o runtime.Object) ([]byte, error) {
	var object, frame bytes.Buffer
	if err := f.info.Serializer.Encode(o, &object); err != nil {
		return nil, fmt.Errorf("encode an event's object: %w", err)
	}
	w := f.info.StreamSerializer.NewFrameWriter(&frame)
	e := &metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Raw: object.Bytes()}}
	if err := f.info.StreamSerializer.Encode(e, w); err != nil {
		return nil, fmt.Errorf("encode an event: %w", err)
	}
	return frame.Bytes(), nil
}

// serveWatch answers a watch. It first sends all objects if the client asks for them, or if the version is 0 or
// missing. If events after the version are forgotten, it answers 410.
func (s *Server) serveWatch(w http.ResponseWriter, req *http.Request, r *resource, sel selector) {
	f := negotiate(req.Header.Get("Accept"))
	q := req.URL.Query()
	initial := q.Get("sendInitialEvents") == "true"
	from := q.Get("resourceVersion")
	out := &writer{w: w, control: http.NewResponseController(w)}

	watch := &watch{selector: sel, format: f, queue: make(chan *event, s.limits.queue)}
	s.mu.Lock()
	var snap *snapshot
	version, err := strconv.ParseUint(from, 10, 64)
	switch {
	case initial || from == "" || from == "0":
		whole := r.snapshot(s.rv)
		snap = &whole
	case err != nil || version < r.forgot:
		s.mu.Unlock()
		fail(w, http.StatusGone, metav1.StatusReasonExpired, "too old resource version: "+from)
		return
	default:
		for _, e := range r.log {
			if e.version > version {
				watch.queue <- e
			}
		}
	}
	r.watches[watch] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(r.watches, watch)
	}()

	w.Header().Set("Content-Type", f.streamType())
	w.WriteHeader(http.StatusOK)
	if snap != nil {
		if err := s.sendInitial(out, f, r, *snap, sel, initial); err != nil {
			return // the client has closed the connection
		}
	}
	out.flush()
	ctx := req.Context()
	if seconds, err := strconv.Atoi(q.Get("timeoutSeconds")); err == nil && seconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
		defer cancel()
	}
	_ = s.follow(ctx, out, r, watch, q.Get("allowWatchBookmarks") == "true")
}

func (s *Server) sendInitial(
	out *writer, f format, r *resource, snap snapshot, sel selector, mark bool,
) error {
	for i := range snap.len() {
		o := snap.at(i)
		if o == nil || !sel.matches(o) {
			continue
		}
		frame, err := f.frame(apiwatch.Added, o)
		if err == nil {
			_, err = out.Write(frame)
		}
		if err != nil {
			return err
		}
	}
	if mark {
		if err := s.bookmark(out, f, r, snap.version, true); err != nil {
			return err
		}
	}
	out.flush()
	s.mu.Lock()
	defer s.mu.Unlock()
	r.sent.Listed = time.Now()
	return nil
}

// bookmark writes an event that has only a resource version. If ends is true, its annotation marks the end of the
// initial events.
func (s *Server) bookmark(out *writer, f format, r *resource, version uint64, ends bool) error {
	o := r.kind.New()
	o.GetObjectKind().SetGroupVersionKind(r.kind.gvk())
	o.SetResourceVersion(strconv.FormatUint(version, 10))
	if ends {
		o.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	}
	frame, err := f.frame(apiwatch.Bookmark, o)
	if err == nil {
		_, err = out.Write(frame)
	}
	return err
}

var errClosed = errors.New("the client was too slow")

func (s *Server) follow(ctx context.Context, out *writer, r *resource, w *watch, bookmarks bool) error {
	ticker := time.NewTicker(s.limits.bookmarks)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if !bookmarks {
				continue
			}
			s.mu.Lock()
			version, waiting := s.rv, len(w.queue)
			s.mu.Unlock()
			if waiting == 0 {
				if err := s.bookmark(out, w.format, r, version, false); err != nil {
					return err
				}
				out.flush()
			}
		case e, ok := <-w.queue:
			if !ok {
				return errClosed
			}
			if err := s.sendEvents(out, r, w, e); err != nil {
				return err
			}
		}
	}
}

func (s *Server) sendEvents(out *writer, r *resource, w *watch, e *event) error {
	var events, size int64
	for more := true; more; {
		if kind, ok := e.kindFor(w.selector); ok {
			frame, err := e.frame(w.format, kind)
			if err == nil {
				_, err = out.Write(frame)
			}
			if err != nil {
				return err
			}
			events++
			size += int64(len(frame))
		}
		select {
		case next, ok := <-w.queue:
			if !ok {
				return errClosed
			}
			e = next
		default:
			more = false
		}
	}
	out.flush()
	s.mu.Lock()
	defer s.mu.Unlock()
	r.sent.Events += events
	r.sent.Bytes += size
	return nil
}

type writer struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

func (w *writer) Write(p []byte) (int, error) { return w.w.Write(p) }

func (w *writer) flush() { _ = w.control.Flush() }
