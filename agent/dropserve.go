package agent

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/weir-net/weir/agentapi"
)

const (
	readerWait = 5 * time.Second
	// lifeSign is how often an idle reader gets an empty value. So the agent notices when a reader is gone.
	lifeSign = 15 * time.Second
)

func (l *dropLog) serve(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	q, err := agentapi.ParseDropsQuery(r.URL.Query())
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	if why := l.unread(); why != "" {
		refuse(w, http.StatusServiceUnavailable, errors.New("no drops are read: "+why))
		return
	}
	news := l.hub.Subscribe(q)
	if news == nil {
		refuse(w, http.StatusServiceUnavailable, errors.New("too many clients read drops"))
		return
	}
	defer news.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(r.Context(), stop)()
	w.Header().Set("Content-Type", "application/json")
	out := dropWriter{json: json.NewEncoder(w), conn: http.NewResponseController(w), query: q}
	if q.Follow {
		// The client is subscribed now, so its queue gets all later drops. The empty value tells the client so.
		if err := out.write(nil); err != nil {
			return
		}
	}
	if !q.Follow || q.Since > 0 {
		var from time.Time
		if q.Since > 0 {
			from = time.Now().Add(-q.Since)
		}
		// A new drop may be in both the ring and the queue. It must be written only once.
		past := l.ring.Since(from)
		if err := out.write(past); err != nil || !q.Follow {
			return
		}
		out.written = make(map[*agentapi.Drop]bool, len(past))
		for _, d := range past {
			out.written[d] = true
		}
	}
	for queues := 0; ctx.Err() == nil; queues++ {
		if err := out.write(news.Next(ctx, lifeSign)); err != nil {
			return
		}
		if queues > 0 { // only the first two batches of the queue may have drops that were also in the ring
			out.written = nil
		}
	}
}

type dropWriter struct {
	json    *json.Encoder
	conn    *http.ResponseController
	query   agentapi.DropsQuery
	written map[*agentapi.Drop]bool
}

// write skips drops that were already written. For an empty list it writes an empty value.
func (w *dropWriter) write(drops []*agentapi.Drop) error {
	wait := func() error { return w.conn.SetWriteDeadline(time.Now().Add(readerWait)) }
	if err := wait(); err != nil {
		return err
	}
	if len(drops) == 0 {
		if err := w.json.Encode(struct{}{}); err != nil {
			return err
		}
	}
	for _, d := range drops {
		if !w.query.Matches(d) || w.written[d] {
			continue
		}
		if !w.query.Packets {
			short := *d
			short.Packet = nil
			d = &short
		}
		if err := errors.Join(wait(), w.json.Encode(d)); err != nil { // each single drop may take readerWait
			return err
		}
	}
	return w.conn.Flush()
}
