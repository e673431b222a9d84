package kube

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
)

// contact is what the last request of each watch ended with. Informers say nothing while the API server is away: they
// try again by themselves, and what they know grows old.
type contact struct {
	mu   sync.Mutex
	errs map[string]error // by path
}

// Transport is for the client's configuration (rest.Config.Wrap): it follows whether watches are answered.
func (s *Source) Transport(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		resp, err := next.RoundTrip(r)
		if r.Context().Value(aside{}) != nil {
			return resp, err
		}
		q := r.URL.Query()
		ofWatch := q.Has("watch") || q.Has("resourceVersion") || q.Has("limit") // a watch begins with a list
		if !ofWatch || (err != nil && r.Context().Err() != nil) {
			return resp, err
		}
		failed := err
		if err == nil && resp.StatusCode >= http.StatusBadRequest && !recovers(resp.StatusCode) {
			failed = fmt.Errorf("%s %s: %s", r.Method, r.URL.Path, resp.Status)
		}
		s.contact.set(r.URL.Path, failed)
		return resp, err
	})
}

// recovers says of an answer that the watch goes on from it: the state that it began at is too old, or the server has
// too much to do right now.
func recovers(status int) bool {
	return status == http.StatusGone || status == http.StatusTooManyRequests
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func (c *contact) set(path string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.errs == nil {
		c.errs = map[string]error{}
	}
	delete(c.errs, path)
	if err != nil {
		c.errs[path] = err
	}
}

// Contact is nil while all watches are answered.
func (s *Source) Contact() error {
	s.contact.mu.Lock()
	defer s.contact.mu.Unlock()
	var errs []error
	said := map[string]bool{} // the same of each watch, if nobody answers at all
	for _, path := range slices.Sorted(maps.Keys(s.contact.errs)) {
		if err := s.contact.errs[path]; !said[err.Error()] {
			said[err.Error()] = true
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
