package kube

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"
)

// contact has the last error of each watch, and the lists that aren't complete. Both are recorded here, because
// client-go's reflectors report neither.
type contact struct {
	mu       sync.Mutex
	requests failures // the key is the path of the watch's requests
	lists    failures // the key is the kind of the listed objects
}

type failures map[string]failure

type failure struct {
	err error
	// since is when the failures began. told is how long they must last before Contact returns the error.
	since time.Time
	told  time.Duration
}

// patience is how long the API server may postpone a watch, or take to send a list. Usually both take seconds.
const patience = time.Minute

// Transport wraps the HTTP transport of the client (rest.Config.Wrap). For Contact, it records whether the API server
// answers the watches' requests. It also removes fields that policy doesn't need from events of pods and nodes.
func (s *Source) Transport(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		resp, err := next.RoundTrip(r)
		if err == nil {
			trimmed(r, resp)
		}
		if r.Context().Value(noWatch{}) != nil {
			return resp, err
		}
		q := r.URL.Query()
		ofWatch := q.Has("watch") || q.Has("resourceVersion") || q.Has("limit") // a watch begins with a list
		if !ofWatch || (err != nil && r.Context().Err() != nil) {
			return resp, err
		}
		switch {
		case err != nil:
			s.contact.fail(&s.contact.requests, r.URL.Path, err, 0)
		case resp.StatusCode < http.StatusBadRequest:
			s.contact.succeed(&s.contact.requests, r.URL.Path)
		default:
			refused := fmt.Errorf("%s %s: %s", r.Method, r.URL.Path, resp.Status)
			s.contact.fail(&s.contact.requests, r.URL.Path, refused, postpones(resp.StatusCode))
		}
		return resp, err
	})
}

// postpones returns how long the API server may answer with this HTTP status before Contact returns the status as an
// error. After 410 and 429, the client begins the watch again by itself. But if etcd doesn't answer, the API server
// answers with 429 all the time.
func postpones(status int) time.Duration {
	if status == http.StatusGone || status == http.StatusTooManyRequests {
		return patience
	}
	return 0
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// fail records that the watch or list has failed. If it failed before, the time of the first failure counts.
func (c *contact) fail(of *failures, what string, err error, told time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if *of == nil {
		*of = failures{}
	}
	now := failure{err, time.Now(), told}
	if before, ok := (*of)[what]; ok {
		now.since, now.told = before.since, min(before.told, told)
	}
	(*of)[what] = now
}

func (c *contact) succeed(of *failures, what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(*of, what)
}

// Contact returns the errors of watches whose last request failed, equal errors only once. The statuses 410 and 429
// count only after a minute (patience). If no watch has failed, Contact returns an error for each list that isn't
// complete after a minute. Contact returns nil if there are no such errors.
func (s *Source) Contact() error { return s.contact.at(time.Now()) }

func (c *contact) at(now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.requests.at(now); err != nil { // a failed watch may be the reason for an incomplete list
		return err
	}
	return c.lists.at(now)
}

func (f failures) at(now time.Time) error {
	var errs []error
	seen := map[string]bool{} // if the API server is down, all watches have the same error
	for _, what := range slices.Sorted(maps.Keys(f)) {
		failed := f[what]
		if text := failed.err.Error(); now.Sub(failed.since) >= failed.told && !seen[text] {
			seen[text] = true
			errs = append(errs, failed.err)
		}
	}
	return errors.Join(errs...)
}
