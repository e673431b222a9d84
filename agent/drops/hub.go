package drops

import (
	"context"
	"sync"
	"time"

	"github.com/weir-net/weir/agentapi"
)

const (
	maxReaders = 32
	// queued bounds the drops that wait for one reader.
	queued = 4096
)

// Hub hands drops to readers. It never waits: a slow reader misses drops, and only learns the number of their packets.
// Any goroutine may use a Hub.
type Hub struct {
	mu      sync.Mutex
	readers map[*Subscription]bool
}

func NewHub() *Hub { return &Hub{readers: map[*Subscription]bool{}} }

// Subscription is one reader's queue.
type Subscription struct {
	hub    *Hub
	query  agentapi.DropsQuery
	queue  []*agentapi.Drop
	missed uint64
	news   chan struct{} // gets a message when the queue isn't empty; has room for one message
}

// Subscribe adds a reader for the drops that match the query. It returns nil if there are too many readers. The
// caller must close the Subscription.
func (h *Hub) Subscribe(q agentapi.DropsQuery) *Subscription {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.readers) >= maxReaders {
		return nil
	}
	s := &Subscription{hub: h, query: q, news: make(chan struct{}, 1)}
	h.readers[s] = true
	return s
}

func (s *Subscription) Close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	delete(s.hub.readers, s)
}

// Publish queues the drops for their readers. If a reader's queue is full, the reader misses the drops, and Publish
// counts their packets.
func (h *Hub) Publish(entries []Entry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.readers {
		for _, e := range entries {
			switch {
			case !s.query.Matches(e.Drop):
			case len(s.queue) >= queued:
				s.missed += e.Count
			default:
				s.queue = append(s.queue, e.Drop)
			}
		}
		if len(s.queue) > 0 {
			select {
			case s.news <- struct{}{}:
			default:
			}
		}
	}
}

// Next waits for drops until wait is over or ctx ends. It returns all queued drops, perhaps none. The last drop may
// count missed packets (DropMissed).
func (s *Subscription) Next(ctx context.Context, wait time.Duration) []*agentapi.Drop {
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	select {
	case <-s.news:
	case <-ctx.Done():
	case <-timeout.C:
	}
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	queue := s.queue
	s.queue = nil
	if s.missed > 0 {
		queue = append(queue, &agentapi.Drop{Kind: agentapi.DropMissed, Time: time.Now(), Count: s.missed})
		s.missed = 0
	}
	return queue
}
