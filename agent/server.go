package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/internal/version"
)

const (
	headerTimeout = 5 * time.Second
	answerTimeout = 30 * time.Second
	idleTimeout   = 10 * time.Second
	// healthConnections limits the connections to the health port that are open at the same time. It is enough for
	// kubelet and a few Prometheus servers, each of which sends one request at a time.
	healthConnections = 32
)

type servers struct {
	serve []func() error
	stop  []func()
}

func (s *servers) close() {
	for _, stop := range s.stop {
		stop()
	}
	s.stop = nil
}

func (a *agent) listen(ctx context.Context, lock *OwnLock) (*servers, error) {
	s := &servers{}
	socket, err := listenSocket(ctx)
	if err != nil {
		return nil, err
	}
	api := http.NewServeMux()
	api.HandleFunc("POST "+agentapi.EnrolPath, a.serveEnrol)
	api.HandleFunc("GET "+agentapi.StatusPath, func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, a.report())
	})
	api.HandleFunc("GET "+agentapi.SummaryPath, func(w http.ResponseWriter, _ *http.Request) {
		summary := agentapi.Summarise(a.report(), a.Node.Name, version.Of("weir-agent"))
		writeJSON(w, http.StatusOK, summary)
	})
	api.HandleFunc("POST "+agentapi.ObjectsPath, a.explainer.serveObjects)
	api.HandleFunc("POST "+agentapi.ExplainPath, a.explainer.serveExplain)
	api.HandleFunc("POST "+agentapi.EnforcedPath, a.serveEnforced)
	api.HandleFunc("GET "+agentapi.AuditPath, func(w http.ResponseWriter, r *http.Request) { a.serveAudit(ctx, w, r) })
	api.HandleFunc("GET "+agentapi.DropsPath, func(w http.ResponseWriter, r *http.Request) { a.drops.serve(ctx, w, r) })
	api.HandleFunc("GET "+agentapi.FlowsPath, a.serveFlows)
	api.HandleFunc("POST "+agentapi.FlowsPath, a.serveFlows)
	s.add(socket, &http.Server{Handler: api, ReadHeaderTimeout: headerTimeout})
	s.serve = append(s.serve, func() error { return a.keepPlaces(ctx, lock, socket) })
	if a.HealthAddress == "" {
		return s, nil
	}
	tcp, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.HealthAddress)
	if err != nil {
		s.close()
		return nil, fmt.Errorf("listen for health checks on %s: %w", a.HealthAddress, err)
	}
	health := http.NewServeMux()
	health.HandleFunc("GET /healthz", a.serveHealth)
	health.HandleFunc("GET /readyz", a.serveReady)
	health.Handle("GET /metrics", a.metrics.handler())
	s.add(&bounded{Listener: tcp, most: healthConnections}, &http.Server{
		Handler: health, ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, WriteTimeout: answerTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: 8 << 10,
	})
	return s, nil
}

func (s *servers) add(l net.Listener, server *http.Server) {
	s.serve = append(s.serve, func() error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve on %s: %w", l.Addr(), err)
		}
		return nil
	})
	s.stop = append([]func(){func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			_ = server.Close()
		}
	}}, s.stop...)
}

// serveHealth reports only whether the loop runs. kubelet restarts an unhealthy agent, and a restart mends only a
// hanging loop.
func (a *agent) serveHealth(w http.ResponseWriter, _ *http.Request) {
	since := time.Since(*a.lastRound.Load())
	if since > 3*a.Resync+time.Minute {
		why := fmt.Sprintf("the agent has not reconciled for %s", since.Round(time.Second))
		http.Error(w, why, http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}

func (a *agent) serveReady(w http.ResponseWriter, _ *http.Request) {
	s := a.status.Load()
	if !s.ready {
		w.WriteHeader(http.StatusServiceUnavailable)
		for _, e := range s.errors() {
			_, _ = fmt.Fprintln(w, e)
		}
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}
